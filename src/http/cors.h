#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "http/request_head.h"

namespace bicached {

using HeaderList = std::vector<std::pair<std::string, std::string>>;

/// Which pages may read answers in a browser (the Fetch standard's CORS). Immutable; any thread.
class Cors {
 public:
  /// `origins` as in the setting cors_origins: "https://host:port", "localhost" for
  /// pages of this machine at any port, or "*" for every page.
  /// Throws kInvalidSettings for what no browser sends.
  explicit Cors(const std::vector<std::string>& origins);

  /// Headers of an answer to a request with this head; none for one that no page sent, or that of
  /// an origin that is not allowed.
  HeaderList headers(const RequestHead& head) const;
  /// Whether a browser asks if it may send a request.
  static bool is_preflight(const RequestHead& head);
  /// What it gets, beside `headers`.
  HeaderList preflight_headers(const RequestHead& head) const;

 private:
  bool allows(std::string_view origin) const;

  const std::vector<std::string> origins_;
};

}  // namespace bicached
