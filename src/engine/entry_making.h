#pragma once

#include <functional>
#include <string>

#include "cache_index/prefix_store.h"
#include "decode/leases.h"
#include "engine/forward_part.h"

namespace bicached {

/// An entry being made: the prefix as a canvas of its own, in the next forward.
class EntryMaking final : public ForwardPart {
 public:
  /// Called once: with "" when the entry is ready, else with the reason why it never will be.
  using Done = std::function<void(StoredPrefix& stored, const std::string& why)>;

  EntryMaking(Denoiser& denoiser, StoredPrefix& stored, Lease slab, Done done)
      : denoiser_(denoiser), stored_(stored), slab_(std::move(slab)), done_(std::move(done)) {}

  bool is_done() const { return !slab_; }
  int num_rows() const override { return stored_.spec.prefix_len; }
  int num_logit_rows() const override { return 0; }
  void append_to(Forward& forward) const override;
  void commit(std::span<const RowResult>) override;
  void fail(ErrorCode, const std::string& why) override;

 private:
  Denoiser& denoiser_;
  StoredPrefix& stored_;
  Lease slab_;
  Done done_;
};

}  // namespace bicached
