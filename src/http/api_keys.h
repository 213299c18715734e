#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace bicached {

/// The keys that may use the server. Immutable; any thread.
class ApiKeys {
 public:
  /// One key a line in each file; empty lines and lines with # are skipped. An empty path of
  /// `key_file`: no key is needed. Keys of `admin_key_file` may do all. Throws kInvalidSettings
  /// when a file can't be read, holds none, or one with characters that an HTTP header may change.
  static ApiKeys load(const std::string& key_file, const std::string& admin_key_file);

  struct Match {
    bool is_admin = false;
    std::string tenant;  // tells keys apart without saying them; empty: no key is needed
  };
  /// `given`: what a request's headers offer as keys; one that is known is enough. Throws
  /// kInvalidApiKey. Takes as long for a nearly right key as for a wrong one.
  Match check(const std::vector<std::string_view>& given) const;
  bool required() const { return !keys_.empty(); }
  size_t count() const { return keys_.size(); }

 private:
  struct Key {
    std::string text;
    bool is_admin;
  };
  void add_file(const std::string& path, bool are_admins);

  std::vector<Key> keys_;
};

/// The key in an Authorization header's value; empty where it is of another scheme.
std::string_view bearer_key(std::string_view authorization);

}  // namespace bicached
