#include "http/cors.h"

#include <algorithm>

#include "bicached/error.h"

namespace bicached {

namespace {

/// "http://localhost:3000", "https://127.0.0.1", "http://[::1]:80": a page of this machine.
bool is_of_this_machine(std::string_view origin) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    for (const std::string_view host : {"localhost", "127.0.0.1", "[::1]"}) {
      std::string_view rest = origin;
      if (!rest.starts_with(scheme)) continue;
      rest.remove_prefix(scheme.size());
      if (!rest.starts_with(host)) continue;
      rest.remove_prefix(host.size());
      if (rest.empty()) return true;
      if (rest.front() == ':' && rest.size() > 1 &&
          rest.find_first_not_of("0123456789", 1) == std::string_view::npos) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace

Cors::Cors(const std::vector<std::string>& origins) : origins_(origins) {
  for (const std::string& origin : origins) {
    const size_t host = origin.find("://");
    const bool is_origin = host != std::string::npos && host > 0 && host + 3 < origin.size() &&
                           origin.find('/', host + 3) == std::string::npos;
    if (is_origin || origin == "*" || origin == "localhost" || origin == "null") continue;
    throw Error(ErrorCode::kInvalidSettings,
                "cors_origins has '" + origin +
                    "'; allowed are origins as browsers send them (https://host, "
                    "http://host:port, null), localhost and *",
                "cors_origins");
  }
}

bool Cors::allows(std::string_view origin) const {
  return std::any_of(origins_.begin(), origins_.end(), [&](const std::string& allowed) {
    return allowed == "*" || allowed == origin ||
           (allowed == "localhost" && is_of_this_machine(origin));
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
