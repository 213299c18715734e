#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace bicached {

/// The keys that may use the server. Immutable; any thread.
class ApiKeys {
 public:
  /// One key a line; empty lines and lines with # are skipped. An empty path: no key is needed.
  /// Throws kInvalidSettings when the file can't be read, holds none, or one with characters that
  /// an HTTP header may change.
  static ApiKeys load(const std::string& path);

  /// Throws kInvalidApiKey. `authorization` is the header's value. Takes as long for a nearly
  /// right key as for a wrong one.
  void check(std::string_view authorization) const;
  bool required() const { return !keys_.empty(); }

 private:
  std::vector<std::string> keys_;
};

}  // namespace bicached
