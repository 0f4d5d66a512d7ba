/* bcc includes <linux/bpf_common.h>; nothing in it is used. */
