#include "base/spare_memory.h"

#include <sys/mman.h>

#include <atomic>
#include <exception>
#include <new>

namespace bicached {
namespace {

/// To destroy a body of 4 MB takes some 7 MB.
constexpr size_t kBytes = 16 << 20;

/// For work, and for exceptions on their way. Here, since what C++ calls gets no argument.
std::atomic<void*> spare_for_work{nullptr}, spare_for_exceptions{nullptr};

void give_spare() {
  auto& spare = std::uncaught_exceptions() > 0 ? spare_for_exceptions : spare_for_work;
  void* const given = spare.exchange(nullptr);
  if (!given) throw std::bad_alloc();
  ::munmap(given, kBytes);
}

void fill(std::atomic<void*>& spare) noexcept {
  if (spare) return;
  void* const fresh =  // never touched: it takes addresses, and no memory
      ::mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (fresh == MAP_FAILED) return;
  void* none = nullptr;
  if (!spare.compare_exchange_strong(none, fresh)) ::munmap(fresh, kBytes);
}

}  // namespace

void set_memory_aside() {
  refill_spare_memory();
  std::set_new_handler(give_spare);
}

void refill_spare_memory() noexcept {
  fill(spare_for_exceptions);
  fill(spare_for_work);
}

}  // namespace bicached
