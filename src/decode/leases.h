#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "bicached/denoiser.h"

namespace bicached {

/// A slab that its holder gives back by ending. Engine thread only.
class SlabLease {
 public:
  SlabLease() = default;
  /// Empty when there is no room.
  SlabLease(Denoiser& denoiser, int num_tokens)
      : denoiser_(&denoiser), slab_(denoiser.open_slab(num_tokens).value_or(kNoId)) {}
  ~SlabLease() { reset(); }
  SlabLease(SlabLease&& other) noexcept
      : denoiser_(other.denoiser_), slab_(std::exchange(other.slab_, kNoId)) {}
  SlabLease& operator=(SlabLease&& other) noexcept {
    reset();
    denoiser_ = other.denoiser_;
    slab_ = std::exchange(other.slab_, kNoId);
    return *this;
  }

  explicit operator bool() const { return slab_ != kNoId; }
  SlabId id() const { return slab_; }
  void reset() {
    if (slab_ != kNoId) denoiser_->close_slab(std::exchange(slab_, kNoId));
  }

 private:
  Denoiser* denoiser_ = nullptr;
  SlabId slab_ = kNoId;
};

}  // namespace bicached
