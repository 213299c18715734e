#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "http/request_head.h"

namespace bicached {

/// A body in chunks (RFC 9112, 7.1), as it comes. Sizes are hexadecimal digits and nothing else:
/// the HTTP library takes "0x10" and "+10" too, which another program on the way may not.
class ChunkedBody {
 public:
  explicit ChunkedBody(int64_t max_bytes) : max_bytes_(max_bytes) {}

  /// Takes what belongs to the body off the front of `bytes`, appends its data to `body`, and
  /// returns how much it took. After a refusal nothing more is to be read.
  size_t read(std::string_view bytes, std::string& body);
  bool is_done() const { return state_ == State::kDone; }
  const std::optional<HttpRefusal>& refusal() const { return refusal_; }

 private:
  enum class State { kSize, kData, kDataEnd, kTrailer, kDone };

  /// A line up to its CRLF; false: it is not whole yet.
  bool read_line(std::string_view& bytes);
  void read_size(const std::string& body);
  void refuse(const std::string& message);

  const int64_t max_bytes_;
  State state_ = State::kSize;
  std::string line_;
  size_t left_ = 0;            // of the chunk
  size_t overhead_bytes_ = 0;  // extensions and trailers
  std::optional<HttpRefusal> refusal_;
};

}  // namespace bicached
