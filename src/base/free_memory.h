#pragma once

#include <atomic>
#include <cstddef>
#include <string>

namespace bicached {

/// Sets the allocator so that freed memory stays for who asks next, until `give_free_memory_back`.
/// At a program's start.
void keep_freed_memory();

/// Gives freed memory back to the system, as far as whole pages are free. Some ms for each 100 MB.
/// Any thread; best the one that frees most.
void give_free_memory_back();

/// Frees what a text holds. To assign an empty one does not: it would keep its room.
inline void free_text(std::string& text) noexcept { std::string().swap(text); }

/// Counts what is freed, and gives it back to the system whenever that is worth the time. Any
/// thread.
class FreedMemory {
 public:
  void add(size_t num_bytes) {
    constexpr size_t kWorthIt = 4 << 20;
    if ((num_bytes_ += num_bytes) < kWorthIt) return;
    num_bytes_ = 0;
    give_free_memory_back();
  }

 private:
  std::atomic<size_t> num_bytes_{0};
};

/// Gives the whole pages of a range back to the system, which hands out pages of zeros when they
/// are touched next. The range is the caller's own memory, and no file's. Any thread.
void drop_pages(void* begin, size_t num_bytes);

}  // namespace bicached
