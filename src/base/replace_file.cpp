#include "base/replace_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace bicached {
namespace {

/// What has the name goes: a named pipe would keep the writer waiting for ever, and behind a link
/// there is another file. False: errno says why.
bool write_new_file(const std::string& path, std::string_view text) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return false;
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return false;
  while (!text.empty()) {
    const ssize_t count = ::write(fd, text.data(), text.size());
    if (count <= 0) {
      const int error = errno;
      ::close(fd);
      errno = error;
      return false;
    }
    text.remove_prefix(static_cast<size_t>(count));
  }
  return ::close(fd) == 0;
}

}  // namespace

int replace_file(const std::string& path, std::string_view text) {
  const std::string fresh = path + ".new";
  const bool done = write_new_file(fresh, text) && ::rename(fresh.c_str(), path.c_str()) == 0;
  return done ? 0 : errno;
}

}  // namespace bicached
