#include "base/free_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace bicached {
namespace {

/// At the end of an arena.
constexpr int kKeptBytes = 128 << 20;

}  // namespace

/// A forward asks for the same megabytes again and again. As glibc is set, it gives them back to
/// the system at once and gets them anew a page at a time: a third of the time of a small model
/// with a large vocabulary. Each arena keeps its own, and by default there are eight for each core:
/// two are enough where one thread computes. What they keep goes back now and then
/// (engine/engine_loop.cpp).
void keep_freed_memory() {
#ifdef __GLIBC__
  ::mallopt(M_ARENA_MAX, 2);
  ::mallopt(M_TRIM_THRESHOLD, kKeptBytes);
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the greatest that is allowed
#endif
}

void give_free_memory_back() {
#ifdef __GLIBC__
  // malloc_trim leaves the end of every arena but the main one as it is. A free of some size gives
  // the end of the thread's own arena back, where that is over the threshold.
  constexpr size_t kSome = 128 << 10;
  ::mallopt(M_TRIM_THRESHOLD, 0);
  void* volatile some = std::malloc(kSome);
  std::free(some);
  ::mallopt(M_TRIM_THRESHOLD, kKeptBytes);
  ::malloc_trim(0);
#endif
}

void drop_pages(void* begin, size_t num_bytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (address + page - 1) / page * page;
  const uintptr_t end = (address + num_bytes) / page * page;
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

}  // namespace bicached
