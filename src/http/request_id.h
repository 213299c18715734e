#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace bicached {

/// Ids of requests: a client's own where it is harmless in headers and log lines, else ours. Any
/// thread.
class RequestIds {
 public:
  RequestIds();
  std::string make();
  /// `given` when it is 1 to 128 of [A-Za-z0-9._-], else a new one.
  std::string accept_or_make(const std::string& given);

 private:
  const uint64_t start_;  // random: ids of two runs differ
  std::atomic<uint64_t> count_{0};
};

}  // namespace bicached
