/* bcc includes <linux/log2.h>; nothing in it is used. */
