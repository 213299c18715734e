#pragma once

#include <functional>
#include <vector>

#include "bicached/error.h"
#include "cache_index/prefix_store.h"
#include "decode/leases.h"
#include "engine/forward_part.h"

namespace bicached {

/// An entry being made: the prefix as a canvas of its own, in the next forward.
class EntryMaking final : public ForwardPart {
 public:
  /// Called once: when the entry is ready (null), or with the reason why it never will be.
  using Done = std::function<void(const Error* failure)>;

  EntryMaking(Denoiser& denoiser, StoredPrefix& stored, Lease slab)
      : denoiser_(denoiser), stored_(stored), slab_(std::move(slab)) {}

  bool is_done() const { return !slab_; }
  bool makes(const StoredPrefix& stored) const { return !is_done() && &stored == &stored_; }
  void when_done(Done done) { done_.push_back(std::move(done)); }
  int num_rows() const override { return stored_.spec.prefix_len; }
  int num_logit_rows() const override { return 0; }
  void append_to(Forward& forward) const override;
  void commit(std::span<const RowResult>) override;
  void fail(ErrorCode code, const std::string& why) override;

 private:
  void end(const Error* failure);

  Denoiser& denoiser_;
  StoredPrefix& stored_;
  Lease slab_;
  std::vector<Done> done_;
};

}  // namespace bicached
