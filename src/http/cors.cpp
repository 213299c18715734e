#include "http/cors.h"

#include <algorithm>

namespace bicached {

bool Cors::allows(std::string_view origin) const {
  return std::any_of(origins_.begin(), origins_.end(), [&](const std::string& allowed) {
    return allowed == "*" || allowed == origin;
  });
}

bool Cors::is_preflight(const RequestHead& head) {
  return head.method == "OPTIONS" && !head.header("origin").empty() &&
         !head.header("access-control-request-method").empty();
}

HeaderList Cors::headers(const RequestHead& head) const {
  if (origins_.empty()) return {};
  const std::string_view origin = head.header("origin");
  // The answer depends on the origin, also where there is none: a cache has to know.
  HeaderList headers = {{"Vary", "Origin"}};
  if (origin.empty() || !allows(origin)) return headers;
  headers.emplace_back("Access-Control-Allow-Origin", origin);
  headers.emplace_back("Access-Control-Allow-Credentials", "true");
  headers.emplace_back("Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
  return headers;
}

HeaderList Cors::preflight_headers(const RequestHead& head) const {
  if (!allows(head.header("origin"))) return {};
  // By name: "*" does not cover Authorization, nor anything in a request with credentials.
  const std::string_view asked = head.header("access-control-request-headers");
  HeaderList headers = {{"Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"},
                        {"Access-Control-Allow-Headers", asked.empty() ? "*" : std::string(asked)},
                        {"Access-Control-Max-Age", "600"}};
  if (equal_ignoring_case(head.header("access-control-request-private-network"), "true")) {
    headers.emplace_back("Access-Control-Allow-Private-Network", "true");
  }
  return headers;
}

}  // namespace bicached
