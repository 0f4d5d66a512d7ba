/* bcc includes <asm/page.h>; nothing in it is used. */
