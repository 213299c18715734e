#include "base/json_file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

namespace bicached {
namespace {

std::string reason(int error) { return std::strerror(error); }

}  // namespace

std::string read_text_file(const std::string& path, size_t max_bytes, ErrorCode code) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             &std::fclose);
  if (!file) throw Error(code, path + ": can't be opened: " + reason(errno));
  std::string text;
  char buffer[1 << 14];
  while (true) {
    const size_t count = std::fread(buffer, 1, sizeof buffer, file.get());
    text.append(buffer, count);
    if (text.size() > max_bytes) {
      throw Error(code, path + ": longer than " + std::to_string(max_bytes) + " bytes");
    }
    if (count == sizeof buffer) continue;
    if (std::ferror(file.get())) throw Error(code, path + ": can't be read: " + reason(errno));
    return text;
  }
}

nlohmann::json parse_json_text(std::string_view text, const std::string& what, ErrorCode code,
                               const JsonLimits& limits) {
  using Event = nlohmann::json::parse_event_t;
  if (text.size() > limits.max_bytes) {
    throw Error(code, what + ": longer than " + std::to_string(limits.max_bytes) + " bytes");
  }
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, Event event, nlohmann::json& value) {
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= limits.max_depth) {
        throw Error(code,
                    what + ": nested deeper than " + std::to_string(limits.max_depth) + " levels");
      }
      keys.emplace_back();
    } else if (event == Event::object_end || event == Event::array_end) {
      keys.pop_back();
    } else if (event == Event::key && !keys.back().insert(value.get<std::string>()).second) {
      throw Error(code, what + ": the key \"" + value.get<std::string>() + "\" is given twice");
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    throw Error(code, what + ": not valid JSON: " + error.what());
  }
}

nlohmann::json read_json_file(const std::string& path, ErrorCode code, const JsonLimits& limits) {
  return parse_json_text(read_text_file(path, limits.max_bytes, code), path, code, limits);
}

}  // namespace bicached
