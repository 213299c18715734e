#pragma once

#include <functional>
#include <utility>

#include "base/log.h"
#include "bicached/denoiser.h"

namespace bicached {

/// A slab or an entry that its holder gives back by ending. Giving back throws nothing. Engine
/// thread only.
class Lease {
 public:
  Lease() = default;
  /// `give_back` gets the id. Let it capture no more than two words: the lease is of something that
  /// is held already, and must need no memory.
  Lease(int64_t id, std::function<void(int64_t)> give_back)
      : id_(id), give_back_(std::move(give_back)) {}
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
  int64_t id() const { return id_; }
  /// It has another holder now.
  void keep() noexcept { id_ = kNoId; }
  void reset() noexcept {
    const int64_t id = std::exchange(id_, kNoId);
    if (id == kNoId) return;
    contain("what a request held could not be given back",
            [&] { std::exchange(give_back_, {})(id); });
  }

 private:
  int64_t id_ = kNoId;
  std::function<void(int64_t)> give_back_;
};

/// Empty: there is no room.
inline Lease lease_slab(Denoiser& denoiser, int num_tokens) {
  const std::optional<SlabId> slab = denoiser.open_slab(num_tokens);
  return slab ? Lease(*slab, [&denoiser](SlabId id) { denoiser.close_slab(id); }) : Lease();
}

}  // namespace bicached
