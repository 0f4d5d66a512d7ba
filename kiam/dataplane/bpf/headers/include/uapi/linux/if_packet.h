/* bcc includes <uapi/linux/if_packet.h>; nothing in it is used. */
