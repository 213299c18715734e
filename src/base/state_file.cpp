#include "base/state_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "base/json_file.h"
#include "base/log.h"

namespace bicached {
namespace {

constexpr size_t kMaxBytes = size_t{16} << 20;

/// False: errno says why. What has the name goes: a named pipe would keep the writer waiting for
/// ever, and behind a link there is another file.
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

StateFile::~StateFile() { unlock(); }

void StateFile::unlock() {
  if (lock_fd_ >= 0) ::close(lock_fd_);
  lock_fd_ = -1;
}

bool StateFile::lock() {
  // Beside the file, which is replaced at every write.
  const std::string path = path_ + ".lock";
  lock_fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644);
  return lock_fd_ < 0 || ::flock(lock_fd_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}

std::optional<std::string> StateFile::read() const {
  std::error_code error;
  if (!std::filesystem::exists(path_, error)) return std::nullopt;
  return read_text_file(path_, kMaxBytes, ErrorCode::kInvalidSettings);
}

void StateFile::set_aside(const std::string& why) const {
  std::error_code error;
  std::filesystem::rename(path_, path_ + ".broken", error);
  log_warn(why + "; nothing is known of earlier traffic" +
           (error ? "" : ", the file is kept as " + path_ + ".broken"));
}

bool StateFile::write(const std::string& text) const {
  const std::string fresh = path_ + ".new";
  if (write_new_file(fresh, text) && ::rename(fresh.c_str(), path_.c_str()) == 0) return true;
  log_warn(path_ + " can't be written: " + std::strerror(errno));
  return false;
}

}  // namespace bicached
