#include "base/state_file.h"

#include <filesystem>
#include <fstream>

#include "base/json_file.h"
#include "base/log.h"

namespace bicached {
namespace {

constexpr size_t kMaxBytes = size_t{16} << 20;

}  // namespace

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
  std::ofstream file(fresh, std::ios::binary);
  file << text;
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(fresh, path_, error);
  if (file && !error) return true;
  log_warn(path_ + " can't be written: " +
           (error ? error.message() : "the disk may be full or not writable"));
  return false;
}

}  // namespace bicached
