/* bcc includes <uapi/linux/bpf.h>; nothing in it is used. */
