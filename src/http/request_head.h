#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bicached/error.h"

namespace bicached {

/// Why a request is refused before a route sees it.
struct HttpRefusal {
  int status;  // 0: the error's own
  Error error;
};

/// Not as HTTP has it, or not as this server takes it.
HttpRefusal bad_request(const std::string& message, int status = 400);

/// What a request's head says, checked.
struct RequestHead {
  std::string method;
  std::string target;  // of an absolute URL what follows the host; "/path?query", or "*"
  std::vector<std::pair<std::string, std::string>> headers;  // names in small letters, as they came
  bool is_http_1_0 = false;
  bool keeps_alive = true;
  bool expects_continue = false;
  bool is_chunked = false;
  std::optional<int64_t> content_length;  // in bytes, where the head says it

  /// The first header of this name, in small letters; empty: there is none.
  std::string_view header(std::string_view name) const;
};

/// Where a request's head ends, with the empty line. A head with bare line feeds ends as well: it
/// is refused then, and the client doesn't wait for an answer.
std::optional<size_t> find_head_end(std::string_view bytes);

inline constexpr size_t kMaxHeadBytes = 64 << 10;
inline constexpr size_t kMaxHeaders = 100;
inline constexpr size_t kMaxLineBytes = 8 << 10;

/// Reads a head that ends with the empty line. How the body is framed and who is meant must be
/// beyond doubt, or two programs on the way could see two different requests: stricter than the
/// HTTP library. What the library does not read as RFC 9110 and 9112 have it (options of
/// Connection, Expect, absolute targets) is read here.
std::optional<HttpRefusal> read_head(std::string_view text, RequestHead& head);

/// For a request that has a route: one that can't be served anyhow is told so, whatever its body.
/// A body that a method has no use for is read and means nothing, since some clients send one with
/// every request.
std::optional<HttpRefusal> check_body_length(const RequestHead& head, int64_t max_body_bytes);

bool equal_ignoring_case(std::string_view a, std::string_view small_letters);
/// Without blanks and tabs at both ends.
std::string_view trim_blanks(std::string_view text);
/// A method or a header's name.
bool is_http_token(std::string_view text);

}  // namespace bicached
