/* bcc refuses to compile without this one; the programs depend on no kernel configuration. */
#define CONFIG_BPF_SYSCALL 1
