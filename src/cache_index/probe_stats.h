#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/hash.h"
#include "bicached/cache_report.h"
#include "bicached/depth_policy.h"
#include "bicached/request.h"

namespace bicached {

/// Canvases that are alike as far as prefix reuse goes: the prefix's share, and how much is
/// generated (a long answer makes more decisions, each a chance to differ).
struct CanvasKind {
  int ratio_percent = 0;  // rounded down to 0, 50 or 80
  int gen_length = 0;     // rounded up to a power of two
  auto operator<=>(const CanvasKind&) const = default;

  static CanvasKind of(int prefix_len, int total_len, int gen_length);
  /// What outcomes of other prefixes are kept by: too few to tell ratios apart as well.
  CanvasKind any_ratio() const { return {-1, gen_length}; }
};

/// A prefix and its relatives: hashes of its first 8, 16, 32, ... tokens, and last of the whole.
/// Prompts of one application begin alike and differ in their data, and so stand alike depths: what
/// probes found of one tells of the next.
struct PrefixLine {
  std::vector<Hash128> ancestors;  // from the shortest
  Hash128 self;
};

/// How far a probed request's decisions stayed the same: at every value up to `good`, not at
/// `bad` and beyond; values between were not tried.
struct ProbeVerdict {
  int good = 0;
  int bad = kNever;
  static constexpr int kNever = 1 << 30;
};

/// Outcomes of probes by prefix, its beginnings and kind of canvas, and when to probe next. Old
/// outcomes fade. Numbers only; engine thread only.
class ProbeStats {
 public:
  struct Settings {
    std::vector<int> depths;  // the ladder of depths: ascending, > 0
    double max_disagreement = 0.05;
    int probe_first = 3;
    double probe_rate = 0.01;
  };
  explicit ProbeStats(Settings settings) : settings_(std::move(settings)) {}

  /// The ladder of depths with what is known of them, for the stored prefix and for the states that
  /// a request's first forward leaves behind.
  std::vector<LadderStep> depths(const PrefixLine& line, const CanvasKind& kind) const;
  std::vector<LadderStep> refresh_depths(const PrefixLine& line, const CanvasKind& kind) const;
  int safe_refresh_depth(const PrefixLine& line, const CanvasKind& kind) const;

  /// Whether one of the next `within` uses of the prefix is to be probed.
  bool is_due(const PrefixLine& line, const CanvasKind& kind, int within = 1);
  /// Counts a use of the prefix and says whether this request is to be probed. A probe that is
  /// taken up has to be ended: by `record`, by `skip` when it found nothing out (the next one comes
  /// after the usual gap), or by `give_up` when it could not be begun (the next use tries again).
  bool take_turn(const PrefixLine& line, const CanvasKind& kind);
  void record(const PrefixLine& line, const CanvasKind& kind,
              const std::optional<ProbeVerdict>& depth,
              const std::optional<ProbeVerdict>& refresh_depth);
  void skip(const PrefixLine& line, const CanvasKind& kind);
  void give_up(const PrefixLine& line, const CanvasKind& kind);
  /// Whether `probe_first` probes were made of the prefix and those that begin alike.
  bool knows(const PrefixLine& line, const CanvasKind& kind) const;
  /// Whether enough is known of the model to spare tests that most likely fail.
  bool knows_model(const CanvasKind& kind) const;

  std::vector<ProbeReport> report(const PrefixLine& line) const;
  std::vector<ProbeReport> report_model() const;
  void forget() { *this = ProbeStats(settings_); }

  /// A file of them, JSON. `from_json` ignores what does not fit the ladders; throws
  /// kInvalidSettings for a file that is none of ours.
  std::string to_json() const;
  void from_json(const std::string& text, const std::string& path);
  /// Grows with every record.
  int64_t version() const { return version_; }

 private:
  struct Tallies {
    std::map<int, Tally> depths, refresh_depths;
    double num_probes = 0;
    uint64_t last_use = 0;
  };
  /// When a prefix is probed.
  struct Turn {
    int64_t uses = 0;
    int64_t next_probe = 1;  // the use that is probed next
    int gap = 1;
    int num_running = 0;  // probes begun and not ended
    uint64_t last_use = 0;
  };
  using Key = std::pair<Hash128, CanvasKind>;

  std::vector<LadderStep> ladder(const PrefixLine& line, const CanvasKind& kind,
                                 std::map<int, Tally> Tallies::* which) const;
  const Tallies* find(const Hash128& hash, const CanvasKind& kind) const;
  ProbeReport describe(const PrefixLine& line, const CanvasKind& kind) const;
  Turn& turn_of(const PrefixLine& line, const CanvasKind& kind);
  bool promises(const std::vector<LadderStep>& steps) const;
  int gap_after(const PrefixLine& line, const CanvasKind& kind, int gap) const;
  void drop_oldest();

  Settings settings_;
  std::map<Key, Tallies> tallies_;  // of prefixes and of beginnings
  std::map<CanvasKind, Tallies> model_;
  std::map<Key, Turn> turns_;
  uint64_t now_ = 0;
  int64_t version_ = 0;
};

/// The line of a prefix. `salt` keeps tenants apart here too.
PrefixLine prefix_line(const std::string& salt, std::span<const TokenId> ids, const Hash128& self);

}  // namespace bicached
