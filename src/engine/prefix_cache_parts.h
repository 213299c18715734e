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
    forward.groups.push_back(prefix_entry_group(stored_.ids, slab_, stored_.entry));
  }

  void commit(std::span<const RowResult>) override;
  void fail(ErrorCode, const std::string& why) override;

 private:
  void close() {
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
  ProbeRun(StoredPrefix& stored_in, PrefixLine line_in, CanvasKind kind_in,
           std::shared_ptr<Probe> probe_in)
      : stored(stored_in), line(std::move(line_in)), kind(kind_in), probe(std::move(probe_in)) {}

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

  StoredPrefix& stored;
  const PrefixLine line;
  const CanvasKind kind;
  const std::shared_ptr<Probe> probe;

 private:
  bool failed_ = false;
};

}  // namespace bicached
