/* bcc includes <uapi/linux/if_ether.h>; nothing in it is used. */
