#pragma once

#include <memory>
#include <utility>

#include "base/log.h"
#include "decode/prefix_entry.h"
#include "engine/prefix_cache.h"

namespace bicached {

/// An entry being made: the prefix as a canvas of its own, in the next forward.
class PrefixCache::Making final : public ForwardPart {
 public:
  Making(PrefixCache& cache, StoredPrefix& stored, SlabId slab)
      : cache_(cache), stored_(stored), slab_(slab) {}

  bool is_done() const { return slab_ == kNoId; }
  int num_rows() const override { return stored_.spec.prefix_len; }
  int num_logit_rows() const override { return 0; }
  void append_to(Forward& forward) override {
    forward.groups.push_back(
        prefix_entry_group(stored_.ids, slab_, stored_.entry, stored_.spec.max_depth));
  }

  void commit(std::span<const RowResult>) override;
  void fail(ErrorCode, const std::string& why) override;

 private:
  void close() {
    if (is_done()) return;
    cache_.denoiser_.close_slab(slab_);
    slab_ = kNoId;
  }

  PrefixCache& cache_;
  StoredPrefix& stored_;
  SlabId slab_;
};

/// A probe from its request's start to its verdict, with a hold on the entry.
class PrefixCache::ProbeRun final : public ForwardPart {
 public:
  ProbeRun(StoredPrefix& stored_in, const CacheUse& use, std::shared_ptr<Probe> probe_in)
      : stored(stored_in),
        line(use.line),
        kind(use.kind),
        own(use.own),
        probe(std::move(probe_in)) {}

  bool is_over() const { return failed_ || probe->is_finished(); }
  bool has_verdict() const { return !failed_ && probe->num_checks() > 0; }
  bool has_work() const { return !failed_ && probe->has_work(); }
  int num_rows() const override { return probe->num_rows(); }
  int num_logit_rows() const override { return probe->num_logit_rows(); }
  void append_to(Forward& forward) override { probe->append_to(forward); }
  void commit(std::span<const RowResult> results) override { probe->commit(results); }
  void fail(ErrorCode, const std::string& why) override {
    log_warn("a probe failed: " + why);
    failed_ = true;
  }
  /// There was no room for it in a forward.
  void miss() { failed_ = failed_ || ++num_missed_ > kMaxMissed; }

  StoredPrefix& stored;
  const PrefixLine line;
  const CanvasKind kind;
  const std::shared_ptr<OwnStates> own;
  const std::shared_ptr<Probe> probe;

 private:
  /// Forwards full of requests that it waits through: it holds states that others could use.
  static constexpr int kMaxMissed = 256;
  bool failed_ = false;
  int num_missed_ = 0;
};

}  // namespace bicached
