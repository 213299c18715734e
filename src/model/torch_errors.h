#pragma once

#include <utility>

namespace bicached {

/// Inside a catch block: torch's ways to say that memory ran out become kOutOfMemory, its other
/// errors kInternal; an `Error` stays. `what` begins the message.
[[noreturn]] void rethrow_torch_error(const char* what);

/// Runs `work` with torch's errors translated.
template <class Work>
decltype(auto) with_torch_errors(const char* what, Work&& work) {
  try {
    return std::forward<Work>(work)();
  } catch (...) {
    rethrow_torch_error(what);
  }
}

}  // namespace bicached
