#include "http/request_head.h"

#include <algorithm>
#include <cctype>

namespace bicached {
namespace {

char small_letter(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c; }

std::string small_letters(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), small_letter);
  return out;
}

/// The items of a list header, trimmed.
template <typename Use>
void for_each_item(std::string_view list, Use use) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    const std::string_view item = trim_blanks(list.substr(0, comma));
    if (!item.empty()) use(item);
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
}

/// Of "http://host/path" the "/path": a server has to take what a client sends to a proxy.
std::string_view without_authority(std::string_view target) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (target.size() < scheme.size() ||
        !equal_ignoring_case(target.substr(0, scheme.size()), scheme)) {
      continue;
    }
    const size_t end = target.find_first_of("/?", scheme.size());
    return end == std::string_view::npos ? std::string_view() : target.substr(end);
  }
  return target;
}

/// METHOD SP TARGET SP VERSION, and nothing that a reader could split in another way.
std::optional<HttpRefusal> read_request_line(std::string_view line, RequestHead& head) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  const bool two_spaces = first != std::string_view::npos && first < last &&
                          line.find(' ', first + 1) == last && last > first + 1;
  const std::string_view version = two_spaces ? line.substr(last + 1) : "";
  // A minor version to come is read as the one that is known (RFC 9110, 2.5).
  const bool is_http_1 = version.size() == 8 && version.starts_with("HTTP/1.") &&
                         version[7] >= '0' && version[7] <= '9';
  if (!two_spaces || !is_http_token(line.substr(0, first)) || !is_http_1) {
    return bad_request("the request line is not of the form METHOD PATH HTTP/1.1");
  }
  head.method = line.substr(0, first);
  head.is_http_1_0 = version == "HTTP/1.0";
  const std::string_view given = line.substr(first + 1, last - first - 1);
  const std::string_view target = without_authority(given);
  if (target.empty() || target[0] == '?') head.target = "/";  // "http://host" and "http://host?q"
  head.target += target;
  const bool is_own_form = head.method == "CONNECT" || target == "*";
  if (!is_own_form && head.target[0] != '/') {
    return bad_request("the request's target is neither a path nor an http URL");
  }
  return std::nullopt;
}

bool is_host(std::string_view value) {
  return std::all_of(value.begin(), value.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) ||
           std::string_view("-._~!$&'()*+;=:[]%").find(c) != std::string_view::npos;
  });
}

std::optional<HttpRefusal> read_header(std::string_view line, RequestHead& head) {
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || !is_http_token(line.substr(0, colon))) {
    return bad_request("a header line is not of the form NAME: VALUE");
  }
  head.headers.emplace_back(small_letters(line.substr(0, colon)),
                            std::string(trim_blanks(line.substr(colon + 1))));
  return std::nullopt;
}

/// What the headers say that every request needs.
class HeaderReader {
 public:
  explicit HeaderReader(RequestHead& head) : head_(head) {}

  std::optional<HttpRefusal> read() {
    head_.keeps_alive = !head_.is_http_1_0;
    for (const auto& [name, value] : head_.headers) {
      std::optional<HttpRefusal> refusal = read_one(name, value);
      if (refusal) return refusal;
    }
    if (num_hosts_ > 1 || (num_hosts_ == 0 && !head_.is_http_1_0)) {
      return bad_request("the header Host must be given once");
    }
    if (head_.is_chunked && head_.content_length) {
      return bad_request("Content-Length and Transfer-Encoding can't go together");
    }
    return std::nullopt;
  }

 private:
  std::optional<HttpRefusal> read_one(const std::string& name, const std::string& value) {
    if (name == "content-length") return read_length(value);
    if (name == "transfer-encoding") {
      if (head_.is_chunked || !equal_ignoring_case(value, "chunked")) {
        return bad_request("Transfer-Encoding may only be: chunked");
      }
      if (head_.is_http_1_0) return bad_request("HTTP/1.0 has no Transfer-Encoding");
      head_.is_chunked = true;
    } else if (name == "host") {
      ++num_hosts_;
      if (!is_host(value)) return bad_request("the header Host is not a host and a port");
    } else if (name == "connection") {
      for_each_item(value, [&](std::string_view option) {
        if (equal_ignoring_case(option, "close")) closes_ = true;
        if (equal_ignoring_case(option, "keep-alive")) head_.keeps_alive = true;
      });
      if (closes_) head_.keeps_alive = false;
    } else if (name == "expect") {
      for_each_item(value, [&](std::string_view item) {
        if (equal_ignoring_case(item, "100-continue")) head_.expects_continue = true;
      });
    } else if (name == "content-encoding") {
      bool plain = true;
      for_each_item(value, [&](std::string_view coding) {
        plain = plain && equal_ignoring_case(coding, "identity");
      });
      if (!plain) {
        return bad_request("Content-Encoding is not supported: send the body as it is", 415);
      }
    }
    return std::nullopt;
  }

  std::optional<HttpRefusal> read_length(std::string_view value) {
    if (head_.content_length) return bad_request("Content-Length is given twice");
    const bool digits =
        !value.empty() && value.size() <= 18 &&
        std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits) return bad_request("Content-Length is not a number of bytes");
    head_.content_length = std::stoll(std::string(value));
    return std::nullopt;
  }

  RequestHead& head_;
  int num_hosts_ = 0;
  bool closes_ = false;
};

}  // namespace

HttpRefusal bad_request(const std::string& message, int status) {
  return {status, Error(ErrorCode::kInvalidRequest, message)};
}

bool equal_ignoring_case(std::string_view a, std::string_view small_letters) {
  return std::ranges::equal(a, small_letters, {}, small_letter);
}

std::string_view trim_blanks(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool is_http_token(std::string_view text) {
  constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  return !text.empty() && std::all_of(text.begin(), text.end(), [&](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           kMarks.find(c) != std::string_view::npos;
  });
}

std::string_view RequestHead::header(std::string_view name) const {
  const auto found = std::find_if(headers.begin(), headers.end(),
                                  [&](const auto& header) { return header.first == name; });
  return found == headers.end() ? std::string_view() : std::string_view(found->second);
}

std::optional<size_t> find_head_end(std::string_view bytes) {
  std::optional<size_t> end;
  for (const std::string_view empty_line : {"\r\n\r\n", "\n\n", "\n\r\n"}) {
    const size_t at = bytes.find(empty_line);
    if (at == std::string_view::npos) continue;
    end = std::min(end.value_or(bytes.size()), at + empty_line.size());
  }
  return end;
}

std::optional<HttpRefusal> read_head(std::string_view text, RequestHead& head) {
  size_t num_lines = 0;
  for (size_t begin = 0; begin + 2 < text.size(); ++num_lines) {
    const size_t end = std::min(text.find("\r\n", begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 2;
    if (line.size() > kMaxLineBytes || num_lines > kMaxHeaders) {
      const int status = num_lines == 0 ? 414 : 431;
      return HttpRefusal{status, Error(ErrorCode::kRequestTooLarge,
                                       "the request's head is too large: at most 100 headers of "
                                       "8192 bytes")};
    }
    const bool control = std::any_of(line.begin(), line.end(), [](char c) {
      return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f;
    });
    if (control) return bad_request("the request's head has control characters");
    std::optional<HttpRefusal> refusal =
        num_lines == 0 ? read_request_line(line, head) : read_header(line, head);
    if (refusal) return refusal;
  }
  if (num_lines == 0) return bad_request("the request line is missing");
  return HeaderReader(head).read();
}

std::optional<HttpRefusal> check_body_length(const RequestHead& head, int64_t max_body_bytes) {
  const bool needs_body = head.method == "POST" || head.method == "PUT" || head.method == "PATCH";
  if (needs_body && !head.is_chunked && !head.content_length) {
    return bad_request("Content-Length is needed", 411);
  }
  const int64_t length = head.content_length.value_or(0);
  if (length <= max_body_bytes) return std::nullopt;
  return HttpRefusal{0, Error(ErrorCode::kRequestTooLarge,
                              "the body has " + std::to_string(length) +
                                  " bytes; allowed is at most " + std::to_string(max_body_bytes))};
}

}  // namespace bicached
