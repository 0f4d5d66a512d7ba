/* Preloaded while an image is built: bcc makes maps in the kernel as it compiles, for which a build has no right. Nothing uses
 * these; each needs a number of its own, by which the compiled instructions name it. */
#define _GNU_SOURCE
#include <sys/mman.h>

int bpf_map_create(void)
{
    return memfd_create("map", 0);
}
