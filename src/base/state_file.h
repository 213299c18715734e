#pragma once

#include <optional>
#include <string>

#include "base/descriptor.h"

namespace bicached {

/// A file that one server writes and its next start reads. A crash or a full disk leaves the old
/// text or the new one, and one that can't be read costs what it held, nothing else.
class StateFile {
 public:
  explicit StateFile(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  /// Makes this process the one that writes it, until it ends. False: another one is. A file system
  /// that has no locks lets all write.
  bool lock();
  /// Another one may be it from now on.
  void unlock() { lock_ = Descriptor(); }
  /// Nothing: there is none. Throws kInvalidSettings when it can't be read or is too long.
  std::optional<std::string> read() const;
  /// Renames it, so that it is not overwritten, and says so in the log with the reason.
  void set_aside(const std::string& why) const;
  /// Whether it worked; if not, the log says why.
  bool write(const std::string& text) const;

 private:
  const std::string path_;
  Descriptor lock_;
};

}  // namespace bicached
