#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

namespace bicached {

/// Outcomes of probes: so many of `num` would have decided other tokens. Fractions: old outcomes
/// fade.
struct Tally {
  double bad = 0;
  double num = 0;
};

/// How far probes are believed: `near_probes` of a prefix and its nearest relatives speak for
/// themselves; what all probes together say weighs as much as `all_weight` of them.
struct Evidence {
  double near_probes = 0;
  double all_weight = 0;
};
/// Depths of reuse. Few are enough, since prefixes fall into classes: with the demonstration model
/// 1 of 121 requests about word rules, orders and sums decided otherwise at full depth, and 216 of
/// 274 about lists.
inline constexpr Evidence kDepthEvidence{8, 0.3};
/// Depths of refreshes. Too deep a one changes only a seventh of the requests about lists, so that
/// six in a row often see nothing.
inline constexpr Evidence kRefreshEvidence{48, 8};

/// What probes say of one step of a ladder of depths. Growing steps save more and risk more.
struct LadderStep {
  int value = 0;  // layers
  Tally own;      // of this prefix, at this kind of canvas
  Tally model;    // of all prefixes of the model, at this kind of canvas
  /// Of other prefixes, from those that don't begin alike to those that share most; each probe is
  /// counted once.
  std::vector<Tally> relatives;
  Evidence evidence = kDepthEvidence;
};

/// A request about to reuse a prefix: all a depth policy may look at.
struct PrefixUse {
  int prefix_len = 0;  // tokens
  int total_len = 0;   // T: prompt, generation and suffix
  int num_layers = 0;
  std::vector<int> depths;         // what the entry can serve: ascending, > 0
  std::vector<LadderStep> probes;  // of these depths; empty when nothing was ever probed
};

/// Share of the prefix in the canvas in percent, rounded half to even: the published r.
int ratio_percent(int prefix_len, int total_len);

/// Depth by ratio: that of the greatest `min_ratio_percent` <= r. Made offline (`bicached
/// profile`), read from configs/depth/<model>.json.
struct DepthTable {
  struct Step {
    int min_ratio_percent = 0;
    int depth = 0;
  };
  std::string model;
  int num_layers = 0;
  std::vector<Step> steps;  // ratios strictly ascending

  /// 0 below the first step: nothing is known to be safe there.
  int depth_at(int ratio) const;

  /// Throws kInvalidSettings naming file and key. Other keys of the file are for people.
  static DepthTable load(const std::string& path);
};

/// How many leading layers of a request take the prefix's keys and values from the cache.
///
/// Pure; any thread. One implementation per file in src/cache_index/depth/, one line in
/// `depth_policy_table()`.
class DepthPolicy {
 public:
  virtual ~DepthPolicy() = default;
  /// 0 to num_layers; 0: nothing is taken over from other requests.
  virtual int choose(const PrefixUse& use) const = 0;
};

struct DepthPolicyParams {
  int depth = 0;                      // `fixed`
  const DepthTable* table = nullptr;  // `table`; not owned
  double max_disagreement = 0.05;     // `measured`
};

struct DepthPolicyInfo {
  const char* name;
  const char* about;  // a sentence
  std::unique_ptr<DepthPolicy> (*make)(const DepthPolicyParams& params);
};

/// All policies, in the order they are shown to users.
std::span<const DepthPolicyInfo> depth_policy_table();
/// Names of the depth policies a request may ask for (`cache.policy`).
std::vector<std::string> depth_policy_names();
/// Throws kInvalidRequest (param "cache.policy") for an unknown name, or `table` without a table.
std::unique_ptr<DepthPolicy> make_depth_policy(const std::string& name,
                                               const DepthPolicyParams& params);

/// The outcomes that say most about a prefix: its own, and those of its nearest relatives while
/// there are fewer than `enough`. Prefixes that don't begin alike are not among them.
Tally nearest_outcomes(const LadderStep& step, double enough);
/// The probability that a step decides other tokens: the rate of the nearest outcomes, shrunk
/// towards that of all. Where there are fewer than `near_probes`, as many as are missing count as
/// prefixes that don't begin alike went.
double estimated_disagreement(const LadderStep& step);
/// The greatest value whose estimate, and that of every smaller step, is at most
/// `max_disagreement`; 0 when not even the first is.
int greatest_safe(std::span<const LadderStep> ladder, double max_disagreement);
/// The depth that `measured` takes: the greatest safe one, but where it ends before the ladder does
/// a sixth of the layers less. Probes look at decisions the model is sure of; with the
/// demonstration model those change at depth 6, unsure ones from depth 4 on.
int measured_depth(std::span<const LadderStep> ladder, double max_disagreement);

}  // namespace bicached
