#include "http/api_keys.h"

#include <algorithm>
#include <sstream>

#include "base/json_file.h"
#include "bicached/error.h"

namespace bicached {
namespace {

bool equal_in_constant_time(std::string_view secret, std::string_view given) {
  unsigned difference = secret.size() == given.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    difference |= static_cast<unsigned char>(given[i]) ^
                  static_cast<unsigned char>(secret[i % secret.size()]);
  }
  return difference == 0;
}

bool is_safe(char c) { return c > 0x20 && c < 0x7f && c != '%'; }

}  // namespace

ApiKeys ApiKeys::load(const std::string& path) {
  ApiKeys keys;
  if (path.empty()) return keys;
  std::istringstream lines(read_text_file(path, 1 << 20, ErrorCode::kInvalidSettings));
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    if (!std::all_of(line.begin(), line.end(), is_safe)) {
      throw Error(
          ErrorCode::kInvalidSettings,
          path + ":" + std::to_string(number) + ": a key may hold visible ASCII characters but %",
          "api_key_file");
    }
    keys.keys_.push_back(line);
  }
  if (keys.keys_.empty()) {
    throw Error(ErrorCode::kInvalidSettings, path + ": holds no key", "api_key_file");
  }
  return keys;
}

void ApiKeys::check(std::string_view authorization) const {
  if (!required()) return;
  constexpr std::string_view kScheme = "bearer ";
  const bool bearer =
      authorization.size() > kScheme.size() &&
      std::equal(kScheme.begin(), kScheme.end(), authorization.begin(), [](char a, char b) {
        return a == (b >= 'A' && b <= 'Z' ? static_cast<char>(b + ('a' - 'A')) : b);
      });
  if (!bearer) {
    throw Error(ErrorCode::kInvalidApiKey,
                "an API key is needed: send the header Authorization: Bearer KEY");
  }
  bool found = false;
  for (const std::string& key : keys_) {  // all of them, whichever it is
    found |= equal_in_constant_time(key, authorization.substr(kScheme.size()));
  }
  if (!found) throw Error(ErrorCode::kInvalidApiKey, "the API key is not known here");
}

}  // namespace bicached
