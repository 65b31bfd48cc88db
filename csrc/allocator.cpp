// The C library's allocator, told once to keep the large blocks it is given back.
#include <cstdlib>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "ops.h"

namespace fasttrace {

// glibc maps every block above a threshold of at most 32 MiB afresh and unmaps it when freed, so each temporary
// of a pass over a few thousand rows costs a page fault and a zeroed page every 4 KiB: a fifth of a product of
// (4096, 576) by (576, 1536). Blocks under 256 MiB now come from the heap, and up to 1 GiB freed at the heap's
// end stays with the process. Larger blocks (weights, second moments) are mapped and returned as before.
// Other C libraries, and allocators preloaded over glibc's, are left as they are.
void keep_freed_memory() {
#if defined(__GLIBC__)
  [[maybe_unused]] static const bool done =
      mallopt(M_MMAP_THRESHOLD, 256 << 20) != 0 && mallopt(M_TRIM_THRESHOLD, 1 << 30) != 0;
#endif
}

}  // namespace fasttrace
