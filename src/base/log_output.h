#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/descriptor.h"

namespace bicached {

/// Where log lines go, without ever waiting for a reader. One thread at a time, but for
/// `num_dropped`.
class LogOutput {
 public:
  /// No line is longer: a pipe takes so many bytes whole or not at all (PIPE_BUF).
  static constexpr size_t kMaxLineBytes = 4096;

  /// An empty path: standard error. Throws kInvalidSettings when the file can't be opened.
  explicit LogOutput(const std::string& path);
  LogOutput(const LogOutput&) = delete;
  LogOutput& operator=(const LogOutput&) = delete;

  /// False: nobody takes the line now. `line` ends with a line feed.
  bool write(std::string_view line);
  /// The file of the same name anew. Throws as the constructor; then the old one is kept.
  void reopen();

 private:
  /// Whether a write would not wait.
  bool is_writable() const;
  int fd() const;

  const std::string path_;
  Descriptor file_;  // none: standard error
  bool is_socket_ = false;
  std::string rest_;  // of a line that was sent in part
};

}  // namespace bicached
