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

std::string reason(int error) { return std::strerror(error); }

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a named pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

/// A descriptor, closed on destruction.
class OpenFile {
 public:
  explicit OpenFile(int fd) : fd_(fd) {}
  ~OpenFile() { ::close(fd_); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  int fd() const { return fd_; }

 private:
  const int fd_;
};

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

int open_regular_file(const std::string& path, ErrorCode code) {
  // Looked at before it is opened: a socket can't be, and to open a device may do something.
  struct stat about{};
  if (::stat(path.c_str(), &about) != 0) {
    throw Error(code, path + ": can't be opened: " + reason(errno));
  }
  const auto check = [&] {
    if (S_ISREG(about.st_mode)) return;
    throw Error(code, path + ": is " + kind_of(about.st_mode) + ", and must be a regular file");
  };
  check();
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw Error(code, path + ": can't be opened: " + reason(errno));
  if (::fstat(fd, &about) != 0) about.st_mode = 0;
  try {
    check();
  } catch (...) {
    ::close(fd);
    throw;
  }
  return fd;
}

std::string read_text_file(const std::string& path, size_t max_bytes, ErrorCode code) {
  const OpenFile file(open_regular_file(path, code));
  std::string text;
  char buffer[1 << 14];
  while (true) {
    const ssize_t count = ::read(file.fd(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw Error(code, path + ": can't be read: " + reason(errno));
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
  using Event = nlohmann::json::parse_event_t;
  if (text.size() > limits.max_bytes) {
    throw Error(code, what + ": longer than " + std::to_string(limits.max_bytes) + " bytes");
  }
  // The parser takes it for the end, and would leave out what follows.
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    throw Error(code, what + ": not valid JSON: byte " + std::to_string(at) + " is NUL");
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
