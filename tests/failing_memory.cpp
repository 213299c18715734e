#include "failing_memory.h"

#include <dlfcn.h>
#include <execinfo.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace {

thread_local bool is_spared = false;
std::atomic<bool> is_armed{false};
std::atomic<int64_t> num_before{0};
std::atomic<int64_t> num_failing{0};

/// Where memory runs out inside of it, nlohmann::json ends the process, or leaves a value that
/// can't be destroyed: base/spare_memory.h is for that.
bool is_in_json_library() {
  const bool was_spared = std::exchange(is_spared, true);  // to look at frames needs memory, too
  void* frames[60];
  const int count = ::backtrace(frames, 60);
  bool is_found = false;
  for (int i = 0; i < count && !is_found; ++i) {
    Dl_info about{};
    is_found = ::dladdr(frames[i], &about) != 0 && about.dli_sname &&
               std::strstr(about.dli_sname, "8nlohmann") != nullptr;
  }
  is_spared = was_spared;
  return is_found;
}

bool fails() {
  if (is_spared || !is_armed) return false;
  if (num_before-- > 0 || num_failing-- <= 0) return false;
  return !is_in_json_library();
}

}  // namespace

[[gnu::noinline]] void* operator new(size_t num_bytes, const std::nothrow_t&) noexcept {
  return fails() ? nullptr : std::malloc(num_bytes > 0 ? num_bytes : 1);
}
[[gnu::noinline]] void* operator new(size_t num_bytes) {
  void* memory = operator new(num_bytes, std::nothrow);
  if (!memory) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace bicached::failing_memory {

void begin(int64_t before, int64_t failing) {
  num_before = before;
  num_failing = failing;
  is_armed = true;
}

bool end() {
  is_armed = false;
  return num_before < 0;
}

void spare_this_thread() { is_spared = true; }

}  // namespace bicached::failing_memory
