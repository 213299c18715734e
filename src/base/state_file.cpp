#include "base/state_file.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/json_file.h"
#include "base/log.h"
#include "base/replace_file.h"

namespace bicached {
namespace {

constexpr size_t kMaxBytes = size_t{16} << 20;

}  // namespace

bool StateFile::lock() {
  // Beside the file, which is replaced at every write.
  const std::string path = path_ + ".lock";
  lock_ = Descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644));
  return lock_.get() < 0 || ::flock(lock_.get(), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
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
  const int error = replace_file(path_, text);
  if (error != 0) log_warn(path_ + " can't be written: " + std::strerror(error));
  return error == 0;
}

}  // namespace bicached
