/* The oldest kernel the programs run on. bcc records it; kernels since 5.0 don't compare it with their own. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
