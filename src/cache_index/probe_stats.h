#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/hash.h"
#include "bicached/cache_report.h"
#include "bicached/depth_policy.h"

namespace bicached {

/// Canvases that are alike as far as prefix reuse goes: the prefix's share, and how much is
/// generated (a long answer makes more decisions, each a chance to differ).
struct CanvasKind {
  int ratio_percent = 0;  // rounded down to tens
  int gen_length = 0;     // rounded up to a power of two
  auto operator<=>(const CanvasKind&) const = default;

  static CanvasKind of(int prefix_len, int total_len, int gen_length);
};

/// How far a probed request's decisions stayed the same: at every value up to `good`, not at
/// `bad` and beyond; values between were not tried.
struct ProbeVerdict {
  int good = 0;
  int bad = kNever;
  static constexpr int kNever = 1 << 30;
};

/// Outcomes of probes by prefix and kind of canvas, and when to probe next (DESIGN 6). Old outcomes
/// fade. Numbers only; engine thread only.
class ProbeStats {
 public:
  struct Settings {
    std::vector<int> depths;  // the ladder of depths: ascending, > 0
    double max_disagreement = 0.05;
    int probe_first = 3;
    double probe_rate = 0.02;
  };
  explicit ProbeStats(Settings settings) : settings_(std::move(settings)) {}

  /// The ladders, with what is known of them. An unknown prefix has the model's outcomes only.
  std::vector<LadderStep> depths(const Hash128& prefix, const CanvasKind& kind) const;
  std::vector<LadderStep> commits(const Hash128& prefix, const CanvasKind& kind) const;
  int safe_depth(const Hash128& prefix, const CanvasKind& kind) const;
  int safe_commits(const Hash128& prefix, const CanvasKind& kind) const;

  /// Counts a use of the prefix and says whether this request is to be probed. A probe that is
  /// taken up has to be ended by `record` or `give_up`.
  bool take_turn(const Hash128& prefix, const CanvasKind& kind);
  void record(const Hash128& prefix, const CanvasKind& kind, const ProbeVerdict& depth,
              const ProbeVerdict* commits);
  void give_up(const Hash128& prefix, const CanvasKind& kind);
  /// Whether the model's rates at this kind of canvas rest on enough probes to spare some tests.
  bool knows(const CanvasKind& kind) const;

  std::vector<ProbeReport> report(const Hash128& prefix) const;
  std::vector<ProbeReport> report_model() const;
  void forget() { *this = ProbeStats(settings_); }

  /// A file of them, JSON. `load` ignores what does not fit the ladders; throws kInvalidSettings
  /// for a file that is none of ours.
  std::string to_json() const;
  void from_json(const std::string& text, const std::string& path);
  /// Grows with every record.
  int64_t version() const { return version_; }

 private:
  struct Tallies {
    std::map<int, Tally> depths, commits;  // by ladder value
    double num_probes = 0;
  };
  struct Own {
    Tallies tallies;
    int64_t uses = 0;
    int64_t next_probe = 1;  // the use that is probed next
    int gap = 1;
    bool probing = false;
    uint64_t last_use = 0;
  };
  using Key = std::pair<Hash128, CanvasKind>;

  std::vector<LadderStep> ladder(const std::vector<int>& values, const Key& key,
                                 std::map<int, Tally> Tallies::*which) const;
  ProbeReport describe(const Key& key) const;
  void plan_next(const Key& key, Own& own, int depth_before);
  void drop_oldest();

  Settings settings_;
  std::map<Key, Own> own_;
  std::map<CanvasKind, Tallies> model_;
  uint64_t now_ = 0;
  int64_t version_ = 0;
};

}  // namespace bicached
