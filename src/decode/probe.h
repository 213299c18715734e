#pragma once

#include <array>
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
  int block = 0;
  int block_begin = 0;
  int block_end = 0;

  /// Of the decoder's next forward and its results, before they are committed.
  static ProbeCase of(const CanvasDecoder& decoder, std::span<const RowResult> results);
};

/// Finds how far a prefix can be reused by a request, by running the request's own canvases again
/// with the prefix taken from an entry: *shadows*, in a slab of their own, in the same packed
/// forwards as other work. They commit nothing and the request never waits for them.
///
/// Two searches on one ladder of depths, each for the greatest at which decisions agree:
/// - `shared`: the entry is the stored prefix;
/// - `own`: the entry is what the request's first forward left, in context. It tells from which
///   layer on refreshes have to compute it again (`Reuse::refresh_depth`).
///
/// Both look at the 1st, 2nd, 3rd, 5th, 9th, ... case of each block (a quota decoder has many that
/// are nearly alike); the least depth is the verdict. The deepest is tried first (it runs fewest
/// rows and settles most cases), then a binary search.
///
/// Engine thread only.
class Probe {
 public:
  struct Search {
    EntryId entry = kNoId;      // kNoId: no such search
    std::vector<double> rates;  // estimated disagreement by depth; spare hopeless tests
    int assumed_safe = 0;       // depths up to this are not tested again
  };
  struct Plan {
    int prefix_len = 0;
    int prompt_len = 0;
    IntraCache intra_cache = IntraCache::kNone;  // of the requests in question
    std::vector<int> depths;                     // ladder: ascending, > 0, last = num_layers
    Search shared, own;
    bool thorough = true;     // spare nothing
    SamplingParams sampling;  // of the request; the shadow takes the most probable token
    bool suppress_end_tokens = false;
  };

  /// Nothing when there is no room for its slab.
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

  /// Nothing where no case was looked at.
  std::optional<ProbeVerdict> shared() const { return verdict(ladders_[0]); }
  std::optional<ProbeVerdict> own() const { return verdict(ladders_[1]); }
  int num_checks() const { return num_checks_; }
  int num_disagreements() const { return num_disagreements_; }
  int64_t row_layers() const { return row_layers_; }

 private:
  static constexpr int kNone = -1;  // index below the ladder: nothing is reused

  /// Where a search stands. Indices into Plan::depths.
  struct Ladder {
    Search search;
    int assumed = kNone;
    int top = kNone;  // to try first: the verdict of the cases before; `assumed`: nothing is left
    bool looked = false;  // at any case
    ProbeVerdict verdict;
    // Of the front case.
    int agreed = kNone;  // greatest that agreed
    int end = 0;         // from here on they are out of question
    int lowest_bad = 0;  // least that disagreed
  };

  Probe(Denoiser& denoiser, Plan plan, int num_tokens, SlabId shadow);
  Ladder make_ladder(Search search) const;
  std::optional<ProbeVerdict> verdict(const Ladder& ladder) const;
  void begin_case();
  bool begin_search();
  void next_test(bool agreed);
  void end_search();
  int depth_of(int index) const;
  bool is_hopeless(int index, int failed) const;
  std::vector<RowSpan> spans() const;
  bool agrees(std::span<const RowResult> results) const;

  Denoiser& denoiser_;
  Plan plan_;
  const int num_tokens_;
  const SlabId shadow_;
  std::deque<ProbeCase> cases_;
  bool closed_ = false;
  bool is_first_case_ = true;
  int block_ = -1;            // of the case added last
  unsigned num_offered_ = 0;  // cases of that block so far

  std::array<Ladder, 2> ladders_;  // shared, own
  size_t now_ = 0;                 // which of them the front case is at
  std::optional<int> test_;        // index into plan_.depths

  bool lost_cases_ = false;
  int num_checks_ = 0;
  int num_disagreements_ = 0;
  int64_t row_layers_ = 0;
};

}  // namespace bicached
