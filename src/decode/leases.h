#pragma once

#include <functional>
#include <utility>

#include "bicached/denoiser.h"

namespace bicached {

/// A slab or an entry that its holder gives back by ending. Engine thread only.
class Lease {
 public:
  Lease() = default;
  Lease(int id, std::function<void()> give_back) : id_(id), give_back_(std::move(give_back)) {}
  ~Lease() { reset(); }
  Lease(Lease&& other) noexcept
      : id_(std::exchange(other.id_, kNoId)), give_back_(std::exchange(other.give_back_, {})) {}
  Lease& operator=(Lease&& other) noexcept {
    reset();
    id_ = std::exchange(other.id_, kNoId);
    give_back_ = std::exchange(other.give_back_, {});
    return *this;
  }

  explicit operator bool() const { return id_ != kNoId; }
  /// kNoId: nothing is held.
  int id() const { return id_; }
  void reset() {
    if (std::exchange(id_, kNoId) != kNoId) std::exchange(give_back_, {})();
  }

 private:
  int id_ = kNoId;
  std::function<void()> give_back_;
};

/// Empty: there is no room.
inline Lease lease_slab(Denoiser& denoiser, int num_tokens) {
  const std::optional<SlabId> slab = denoiser.open_slab(num_tokens);
  return slab ? Lease(*slab, [&denoiser, slab] { denoiser.close_slab(*slab); }) : Lease();
}

}  // namespace bicached
