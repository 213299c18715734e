#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "bicached/error.h"

namespace bicached {

/// A client's socket (not blocking) and what was read from it and not used yet. Belongs to one
/// thread at a time: the poller's while it waits for a request, a worker's while one is answered.
class Connection {
 public:
  explicit Connection(int fd) : fd_(fd) {}
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  int fd() const { return fd_; }
  std::string_view buffered() const { return std::string_view(buffer_).substr(used_); }
  /// Takes at most `size` bytes of the buffer.
  size_t take(char* to, size_t size);

  enum class Read { kData, kNothing, kClosed };
  /// Reads what has arrived into the buffer; never waits.
  Read read_available();
  /// Reads and drops what has arrived; for closing without losing the last response.
  Read discard_available();
  /// Waits until there is room. False: the client is gone, or takes nothing for `timeout`.
  bool write_all(std::string_view bytes, std::chrono::milliseconds timeout);
  bool peer_closed() const;
  void shut_down_writing();

 private:
  const int fd_;
  std::string buffer_;
  size_t used_ = 0;
};

/// Why a request is refused by its head alone.
struct HeadRefusal {
  int status;
  Error error;
};

/// Whether `bytes` begin with a whole request head; its length with the empty line.
std::optional<size_t> find_head_end(std::string_view bytes);

inline constexpr size_t kMaxHeadBytes = 64 << 10;
inline constexpr size_t kMaxHeaders = 100;
inline constexpr size_t kMaxLineBytes = 8 << 10;

/// How the body is framed must be beyond doubt, or two programs on the way could see two different
/// requests: stricter than the HTTP library. `head` ends with the empty line.
std::optional<HeadRefusal> check_framing(std::string_view head, int64_t max_body_bytes);

}  // namespace bicached
