#include "http/connection.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace bicached {
namespace {

bool equal_ignoring_case(std::string_view a, std::string_view lower) {
  return a.size() == lower.size() &&
         std::equal(a.begin(), a.end(), lower.begin(), [](char x, char y) {
           return (x >= 'A' && x <= 'Z' ? static_cast<char>(x + ('a' - 'A')) : x) == y;
         });
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool is_token(std::string_view name) {
  constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  return !name.empty() && std::all_of(name.begin(), name.end(), [&](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           kMarks.find(c) != std::string_view::npos;
  });
}

HeadRefusal bad_request(const std::string& message) {
  return {400, Error(ErrorCode::kInvalidRequest, message)};
}

/// What the head says of the body.
struct Framing {
  std::string_view method;
  std::optional<std::string_view> content_length;
  bool chunked = false;
};

/// METHOD SP TARGET SP VERSION, and nothing that a reader could split in another way.
std::optional<HeadRefusal> read_request_line(std::string_view line, Framing& framing) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  const bool two_spaces = first != std::string_view::npos && first < last &&
                          line.find(' ', first + 1) == last && last > first + 1;
  if (!two_spaces || !is_token(line.substr(0, first)) ||
      (line.substr(last + 1) != "HTTP/1.1" && line.substr(last + 1) != "HTTP/1.0")) {
    return bad_request("the request line is not of the form METHOD PATH HTTP/1.1");
  }
  framing.method = line.substr(0, first);
  return std::nullopt;
}

std::optional<HeadRefusal> read_header(std::string_view line, Framing& framing) {
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) {
    return bad_request("a header line is not of the form NAME: VALUE");
  }
  const std::string_view name = line.substr(0, colon), value = trim(line.substr(colon + 1));
  if (equal_ignoring_case(name, "content-length")) {
    if (framing.content_length) return bad_request("Content-Length is given twice");
    const bool digits =
        !value.empty() && value.size() <= 18 &&
        std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits) return bad_request("Content-Length is not a number of bytes");
    framing.content_length = value;
  } else if (equal_ignoring_case(name, "transfer-encoding")) {
    if (framing.chunked || !equal_ignoring_case(value, "chunked")) {
      return bad_request("Transfer-Encoding may only be: chunked");
    }
    framing.chunked = true;
  }
  return std::nullopt;
}

std::optional<HeadRefusal> check_body(const Framing& framing, int64_t max_body_bytes) {
  if (framing.chunked && framing.content_length) {
    return bad_request("Content-Length and Transfer-Encoding can't go together");
  }
  const bool has_body_method =
      framing.method == "POST" || framing.method == "PUT" || framing.method == "PATCH";
  const int64_t length =
      framing.content_length ? std::stoll(std::string(*framing.content_length)) : 0;
  if (has_body_method && !framing.chunked && !framing.content_length) {
    return HeadRefusal{411, Error(ErrorCode::kInvalidRequest, "Content-Length is needed")};
  }
  if (!has_body_method && (framing.chunked || length > 0)) {
    return bad_request("this method takes no body");
  }
  if (length > max_body_bytes) {
    return HeadRefusal{413,
                       Error(ErrorCode::kRequestTooLarge, "the body has " + std::to_string(length) +
                                                              " bytes; allowed is at most " +
                                                              std::to_string(max_body_bytes))};
  }
  return std::nullopt;
}

}  // namespace

Connection::~Connection() { ::close(fd_); }

size_t Connection::take(char* to, size_t size) {
  const std::string_view rest = buffered();
  const size_t count = std::min(size, rest.size());
  std::memcpy(to, rest.data(), count);
  used_ += count;
  if (used_ == buffer_.size()) {
    buffer_.clear();
    used_ = 0;
  }
  return count;
}

Connection::Read Connection::read_available() {
  char bytes[16 << 10];
  const ssize_t count = ::recv(fd_, bytes, sizeof bytes, MSG_DONTWAIT);
  if (count > 0) {
    buffer_.erase(0, used_);
    used_ = 0;
    buffer_.append(bytes, static_cast<size_t>(count));
    return Read::kData;
  }
  const bool nothing = count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
  return nothing ? Read::kNothing : Read::kClosed;
}

Connection::Read Connection::discard_available() {
  const Read result = read_available();
  buffer_.clear();
  used_ = 0;
  return result;
}

bool Connection::write_all(std::string_view bytes, std::chrono::milliseconds timeout) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(fd_, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count > 0) {
      bytes.remove_prefix(static_cast<size_t>(count));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return false;
    pollfd waiting{fd_, POLLOUT, 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(timeout.count()));
    if (ready == 0 || (ready < 0 && errno != EINTR)) return false;
  }
  return true;
}

bool Connection::peer_closed() const {
  char byte;
  const ssize_t count = ::recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return count == 0 || (count < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

void Connection::shut_down_writing() { ::shutdown(fd_, SHUT_WR); }

std::optional<size_t> find_head_end(std::string_view bytes) {
  const size_t at = bytes.find("\r\n\r\n");
  if (at == std::string_view::npos) return std::nullopt;
  return at + 4;
}

std::optional<HeadRefusal> check_framing(std::string_view head, int64_t max_body_bytes) {
  Framing framing;
  size_t num_lines = 0;
  for (size_t begin = 0; begin + 2 < head.size(); ++num_lines) {
    const size_t end = head.find("\r\n", begin);
    const std::string_view line = head.substr(begin, end - begin);
    begin = end + 2;
    if (line.size() > kMaxLineBytes || num_lines > kMaxHeaders) {
      const int status = num_lines == 0 ? 414 : 431;
      return HeadRefusal{status, Error(ErrorCode::kRequestTooLarge,
                                       "the request's head is too large: at most 100 headers of "
                                       "8192 bytes")};
    }
    const bool control = std::any_of(line.begin(), line.end(), [](char c) {
      return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f;
    });
    if (control) return bad_request("the request's head has control characters");
    std::optional<HeadRefusal> refusal =
        num_lines == 0 ? read_request_line(line, framing) : read_header(line, framing);
    if (refusal) return refusal;
  }
  return check_body(framing, max_body_bytes);
}

}  // namespace bicached
