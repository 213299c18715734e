#include "base/log_output.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "bicached/error.h"

namespace bicached {
namespace {

Descriptor open_log(const std::string& path) {
  if (path.empty()) return Descriptor();
  // Not blocking: a named pipe without a reader must not hold the start-up for ever.
  Descriptor file(
      ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0640));
  if (file.get() >= 0) return file;
  throw Error(ErrorCode::kInvalidSettings,
              "log_file is '" + path + "', which can't be opened: " + std::strerror(errno),
              "log_file");
}

bool is_socket(int fd) {
  struct stat about{};
  return ::fstat(fd, &about) == 0 && S_ISSOCK(about.st_mode);
}

}  // namespace

LogOutput::LogOutput(const std::string& path)
    : path_(path), file_(open_log(path)), is_socket_(is_socket(fd())) {}

int LogOutput::fd() const { return path_.empty() ? STDERR_FILENO : file_.get(); }

void LogOutput::reopen() {
  if (path_.empty()) return;
  file_ = open_log(path_);
  rest_.clear();
}

bool LogOutput::is_writable() const {
  pollfd waiting{fd(), POLLOUT, 0};
  return ::poll(&waiting, 1, 0) > 0 && (waiting.revents & POLLOUT) != 0;
}

bool LogOutput::write(std::string_view line) {
  // Standard error may be shared with other programs, so that it can't be made non-blocking here.
  const std::string all = rest_ + std::string(line);
  if (!is_writable()) return false;
  const ssize_t count = is_socket_
                            ? ::send(fd(), all.data(), all.size(), MSG_DONTWAIT | MSG_NOSIGNAL)
                            : ::write(fd(), all.data(), all.size());
  if (count <= 0) return false;
  rest_ = all.substr(static_cast<size_t>(count));
  return true;
}

}  // namespace bicached
