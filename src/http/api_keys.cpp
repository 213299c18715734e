#include "http/api_keys.h"

#include <algorithm>
#include <sstream>

#include "base/hash.h"
#include "base/json_file.h"
#include "bicached/error.h"
#include "http/request_head.h"

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

std::string tenant_of(const std::string& key) {
  Hasher hasher;
  hasher.add("bicached tenant");
  hasher.add(key);
  return hasher.digest().hex();
}

}  // namespace

void ApiKeys::add_file(const std::string& path, bool are_admins) {
  std::istringstream lines(read_text_file(path, 1 << 20, ErrorCode::kInvalidSettings));
  std::string line;
  size_t num_added = 0;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    if (!std::all_of(line.begin(), line.end(), is_safe)) {
      throw Error(ErrorCode::kInvalidSettings,
                  path + ":" + std::to_string(number) +
                      ": a key is made of visible ASCII characters, without % and spaces");
    }
    keys_.push_back({line, are_admins});
    ++num_added;
  }
  if (num_added == 0) throw Error(ErrorCode::kInvalidSettings, path + ": holds no key");
}

ApiKeys ApiKeys::load(const std::string& key_file, const std::string& admin_key_file) {
  ApiKeys keys;
  const auto add = [&](const char* setting, const std::string& path, bool are_admins) {
    if (!path.empty()) name_errors(setting, [&] { keys.add_file(path, are_admins); });
  };
  add("admin_key_file", admin_key_file, true);
  add("api_key_file", key_file, false);
  // Who has the only key there is has set the server up.
  if (keys.keys_.size() == 1) keys.keys_[0].is_admin = true;
  return keys;
}

ApiKeys::Match ApiKeys::check(const std::vector<std::string_view>& given) const {
  if (!required()) return {true, ""};
  if (given.empty()) {
    throw Error(ErrorCode::kInvalidApiKey,
                "an API key is needed: send the header Authorization: Bearer KEY");
  }
  const Key* found = nullptr;
  for (const Key& key : keys_) {  // all of them, whichever it is
    for (const std::string_view one : given) {
      const bool equal = equal_in_constant_time(key.text, one);
      if (equal && (!found || key.is_admin)) found = &key;
    }
  }
  if (!found) throw Error(ErrorCode::kInvalidApiKey, "the API key is not known here");
  return {found->is_admin, tenant_of(found->text)};
}

std::string_view bearer_key(std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer";
  if (authorization.size() <= kScheme.size() ||
      !equal_ignoring_case(authorization.substr(0, kScheme.size()), kScheme) ||
      (authorization[kScheme.size()] != ' ' && authorization[kScheme.size()] != '\t')) {
    return "";
  }
  return trim_blanks(authorization.substr(kScheme.size()));
}

}  // namespace bicached
