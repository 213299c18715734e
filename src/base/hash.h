#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace bicached {

/// A 128-bit hash.
struct Hash128 {
  uint64_t low = 0;
  uint64_t high = 0;
  auto operator<=>(const Hash128&) const = default;
  /// 32 digits.
  std::string hex() const;
};

/// Streaming xxHash3, 128 bits. Not for secrets. One thread.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  /// Adds bytes and their count, so that ("ab", "c") and ("a", "bc") differ.
  void add(std::string_view bytes);
  /// Of what was added so far; more may be added.
  Hash128 digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace bicached
