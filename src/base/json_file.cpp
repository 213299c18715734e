#include "base/json_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

namespace bicached {
namespace {

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a named pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

/// Looks at a text before it is parsed. The library's parser would ask a callback, too, but then
/// looks through a list anew for each object in it: half a minute for 750 KB of them.
class Shape final : public nlohmann::json_sax<nlohmann::json> {
 public:
  Shape(const std::string& what, ErrorCode code, const JsonLimits& limits)
      : what_(what), code_(code), limits_(limits) {}

  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    if (limits_.unique_keys && !keys_.back().insert(name).second) {
      throw Error(code_, what_ + ": the key \"" + name + "\" is given twice");
    }
    return true;
  }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  /// Ends the look: to parse it says what is wrong.
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception&) override {
    return false;
  }

 private:
  bool open() {
    if (keys_.size() >= static_cast<size_t>(limits_.max_depth)) {
      throw Error(code_,
                  what_ + ": nested deeper than " + std::to_string(limits_.max_depth) + " levels");
    }
    keys_.emplace_back();
    return true;
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  const std::string& what_;
  const ErrorCode code_;
  const JsonLimits& limits_;
  std::vector<std::set<std::string>> keys_;  // of the objects and lists that are open
};

/// The library's message without its own number of the error, which stands in brackets before it.
std::string message_of(const nlohmann::json::exception& error) {
  const std::string message = error.what();
  const size_t bracket = message.find("] ");
  return message.starts_with('[') && bracket != std::string::npos ? message.substr(bracket + 2)
                                                                  : message;
}

}  // namespace

std::string foreign_content(std::string_view first_bytes) {
  if (first_bytes.starts_with("version https://git-lfs.github.com/spec/")) {
    return "is a Git LFS pointer: the file itself was not downloaded (git lfs pull fetches it)";
  }
  if (first_bytes.starts_with("<!") || first_bytes.starts_with("<html") ||
      first_bytes.starts_with("<?xml")) {
    return "is a web page: the download of the file itself went wrong";
  }
  return "";
}

Descriptor open_regular_file(const std::string& path, ErrorCode code) {
  // Looked at before it is opened: a socket can't be, and to open a device may do something.
  struct stat about{};
  if (::stat(path.c_str(), &about) != 0) {
    throw Error(code, path + ": can't be opened: " + std::strerror(errno));
  }
  const auto check = [&] {
    if (S_ISREG(about.st_mode)) return;
    throw Error(code, path + ": is " + kind_of(about.st_mode) + ", and must be a regular file");
  };
  check();
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) throw Error(code, path + ": can't be opened: " + std::strerror(errno));
  if (::fstat(file.get(), &about) != 0) about.st_mode = 0;
  check();
  return file;
}

std::string read_text_file(const std::string& path, size_t max_bytes, ErrorCode code) {
  const Descriptor file = open_regular_file(path, code);
  std::string text;
  char buffer[1 << 14];
  while (true) {
    const ssize_t count = ::read(file.get(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw Error(code, path + ": can't be read: " + std::strerror(errno));
    if (count == 0) break;
    text.append(buffer, static_cast<size_t>(count));
    if (text.size() > max_bytes) {
      throw Error(code, path + ": longer than " + std::to_string(max_bytes) + " bytes");
    }
  }
  if (const std::string why = foreign_content(text); !why.empty()) {
    throw Error(code, path + ": " + why);
  }
  return text;
}

nlohmann::json parse_json_text(std::string_view text, const std::string& what, ErrorCode code,
                               const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    throw Error(code, what + ": longer than " + std::to_string(limits.max_bytes) + " bytes");
  }
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    throw Error(code, what + ": not valid JSON: there is nothing in it");
  }
  // The parser takes it for the end, and would leave out what follows.
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    throw Error(code, what + ": not valid JSON: byte " + std::to_string(at) + " is NUL");
  }
  Shape shape(what, code, limits);
  try {
    nlohmann::json::sax_parse(text, &shape);
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    throw Error(code, what + ": not valid JSON: " + message_of(error));
  }
}

nlohmann::json read_json_file(const std::string& path, ErrorCode code, const JsonLimits& limits) {
  return parse_json_text(read_text_file(path, limits.max_bytes, code), path, code, limits);
}

}  // namespace bicached
