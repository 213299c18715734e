#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "bicached/denoiser.h"
#include "cache_index/probe_stats.h"
#include "decode/canvas_decoder.h"

namespace bicached {

/// One forward of a request that is decoded without shared states: the canvas it saw and what it
/// decided. The question to a shadow is whether it would decide the same.
struct ProbeCase {
  std::vector<TokenId> tokens;  // the whole canvas before the forward
  std::vector<int> masked;      // masked positions of the active block
  /// Positions whose token the model is sure of (probability >= 0.7), at least the best one: a
  /// change of any other says little, since it would not be committed.
  std::vector<std::pair<int, TokenId>> decisive;
  int commits = 0;  // tokens committed before

  /// Of the decoder's next forward and its results, before they are committed.
  static ProbeCase of(const CanvasDecoder& decoder, std::span<const RowResult> results);
};

/// Finds how far a prefix can be reused by a request, by running the request's own canvases again
/// with the prefix taken from an entry: *shadows*, in slabs of their own, in the same packed
/// forwards as other work. They commit nothing and the request never waits for them.
///
/// - depth: at every forward, the greatest depth whose decisions agree; the least of them is the
///   verdict. The deepest is tried first (it runs fewest rows and settles most cases), then a
///   binary search.
/// - staleness: the agreeing shadow of the first forward keeps its prefix K/V while the request
///   goes on; the number of committed tokens at which its decisions first differ.
///
/// Engine thread only.
class Probe {
 public:
  struct Plan {
    EntryId entry = kNoId;
    int prefix_len = 0;
    std::vector<int> depths;    // ladder: ascending, > 0, last = num_layers
    std::vector<double> rates;  // estimated disagreement by depth; spare hopeless tests
    int assumed_safe = 0;       // depths up to this are not tested again
    bool thorough = true;       // spare nothing, and look at staleness in any case
    SamplingParams sampling;    // of the request; the shadow takes the most probable token
    bool suppress_end_tokens = false;
  };

  /// Nothing when there is no room for its slabs.
  static std::unique_ptr<Probe> start(Denoiser& denoiser, Plan plan, int num_tokens);
  ~Probe();

  void add(ProbeCase next);
  /// The request has ended; what is queued is still worked off.
  void close() { closed_ = true; }
  bool has_work() const { return !cases_.empty(); }
  bool is_finished() const { return closed_ && cases_.empty(); }

  /// Rows of the next forward.
  int num_rows() const;
  void append_to(Forward& forward);
  int num_logit_rows() const;
  void commit(std::span<const RowResult> results);

  const ProbeVerdict& depth() const { return depth_; }
  /// Nothing when no forward without a refresh was looked at.
  std::optional<ProbeVerdict> commits() const;
  int num_checks() const { return num_checks_; }
  int num_disagreements() const { return num_disagreements_; }
  int64_t row_layers() const { return row_layers_; }

 private:
  static constexpr int kFill = -1;  // index of depth 0: only fills the frozen shadow

  Probe(Denoiser& denoiser, Plan plan, int num_tokens, SlabId shadow, SlabId frozen);
  void begin_case();
  void begin_search();
  void next_test(bool agreed);
  int depth_of(int index) const;
  bool is_hopeless(int index, int failed) const;
  void end_search();
  void append_shadow(Forward& forward, SlabId slab, std::optional<int> refresh_depth);
  bool agrees(std::span<const RowResult> results) const;

  Denoiser& denoiser_;
  Plan plan_;
  const int num_tokens_;
  SlabId shadow_;
  SlabId frozen_;
  std::deque<ProbeCase> cases_;
  bool closed_ = false;
  bool is_first_case_ = true;

  // The search of the front case.
  std::optional<int> test_;  // index into plan_.depths, or kFill
  int agreed_ = kFill;       // greatest index that agreed in this case
  int search_end_ = 0;       // indices from here on are out of question
  int lowest_bad_ = 0;       // least index that disagreed in this case
  bool stopped_ = false;     // no more searches: the answer would not be used
  int top_ = 0;              // index to try first: the verdict of the blocks before
  int assumed_ = kFill;      // index of plan_.assumed_safe

  // The frozen shadow.
  bool has_frozen_ = false;
  int frozen_at_ = 0;           // tokens committed when its prefix was computed
  bool frozen_wanted_ = false;  // in the front case

  ProbeVerdict depth_;
  ProbeVerdict staleness_{ProbeVerdict::kNever - 1, ProbeVerdict::kNever};
  bool looked_at_staleness_ = false;
  bool lost_cases_ = false;
  int num_checks_ = 0;
  int num_disagreements_ = 0;
  int64_t row_layers_ = 0;
};

}  // namespace bicached
