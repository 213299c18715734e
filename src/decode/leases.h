#pragma once

#include <exception>
#include <functional>
#include <string>
#include <utility>

#include "base/log.h"
#include "bicached/denoiser.h"

namespace bicached {

/// A slab or an entry that its holder gives back by ending. Giving back throws nothing. Engine
/// thread only.
class Lease {
 public:
  Lease() = default;
  Lease(int64_t id, std::function<void()> give_back) : id_(id), give_back_(std::move(give_back)) {}
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
  void reset() noexcept {
    if (std::exchange(id_, kNoId) == kNoId) return;
    try {
      std::exchange(give_back_, {})();
    } catch (const std::exception& error) {
      log_error(std::string("what a request held could not be given back: ") + error.what());
    }
  }

 private:
  int64_t id_ = kNoId;
  std::function<void()> give_back_;
};

/// Empty: there is no room.
inline Lease lease_slab(Denoiser& denoiser, int num_tokens) {
  const std::optional<SlabId> slab = denoiser.open_slab(num_tokens);
  return slab ? Lease(*slab, [&denoiser, slab] { denoiser.close_slab(*slab); }) : Lease();
}

}  // namespace bicached
