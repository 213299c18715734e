#include "http/chunked_body.h"

#include <algorithm>
#include <charconv>

namespace bicached {
namespace {

constexpr size_t kMaxSizeDigits = 16;

}  // namespace

size_t ChunkedBody::read(std::string_view bytes, std::string& body) {
  const size_t given = bytes.size();
  while (!bytes.empty() && !refusal_ && !is_done()) {
    if (state_ == State::kData) {
      const size_t count = std::min(left_, bytes.size());
      body.append(bytes.substr(0, count));
      bytes.remove_prefix(count);
      left_ -= count;
      if (left_ == 0) state_ = State::kDataEnd;
      continue;
    }
    if (!read_line(bytes)) break;
    if (state_ == State::kDataEnd) {
      if (!line_.empty()) refuse("a chunk of the body is longer than its size says");
      state_ = State::kSize;
    } else if (state_ == State::kSize) {
      read_size(body);
    } else if (line_.empty()) {  // the trailer's end
      state_ = State::kDone;
    } else {
      overhead_bytes_ += line_.size();
    }
    line_.clear();
  }
  return given - bytes.size();
}

bool ChunkedBody::read_line(std::string_view& bytes) {
  const size_t end = bytes.find('\n');
  const size_t count = end == std::string_view::npos ? bytes.size() : end + 1;
  line_.append(bytes.substr(0, count));
  bytes.remove_prefix(count);
  if (line_.size() > kMaxLineBytes || overhead_bytes_ + line_.size() > kMaxHeadBytes) {
    refuse("the body's chunk extensions or trailers are too long");
    return false;
  }
  if (end == std::string_view::npos) return false;
  if (line_.size() < 2 || line_[line_.size() - 2] != '\r') {
    refuse("a line of the chunked body does not end with CR LF");
    return false;
  }
  line_.resize(line_.size() - 2);
  return true;
}

void ChunkedBody::read_size(const std::string& body) {
  size_t size = 0;
  const auto [end, error] = std::from_chars(line_.data(), line_.data() + line_.size(), size, 16);
  const size_t digits = static_cast<size_t>(end - line_.data());
  const std::string_view rest = trim_blanks(std::string_view(line_).substr(digits));
  if (error != std::errc() || line_[0] == '-' || digits > kMaxSizeDigits ||
      (!rest.empty() && rest[0] != ';')) {
    return refuse("a chunk's size is not a hexadecimal number");
  }
  overhead_bytes_ += line_.size() - digits;
  if (size > static_cast<size_t>(max_bytes_) ||
      body.size() + size > static_cast<size_t>(max_bytes_)) {
    refusal_ = HttpRefusal{0, Error(ErrorCode::kRequestTooLarge, "the body is longer than the " +
                                                                     std::to_string(max_bytes_) +
                                                                     " bytes that are allowed")};
    return;
  }
  left_ = size;
  state_ = size > 0 ? State::kData : State::kTrailer;
}

void ChunkedBody::refuse(const std::string& message) { refusal_ = bad_request(message); }

}  // namespace bicached
