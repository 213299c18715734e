#include "cache_index/probe_stats.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace bicached {
namespace {

/// Intervals between refreshes that are told apart, in committed tokens; 1 refreshes whenever that
/// is possible.
const std::vector<int> kCommitLadder = {1, 4, 8, 16, 32, 64, 128, 256};

/// Probes that still count: a workload that changes shows after about as many.
constexpr double kOwnMemory = 16, kModelMemory = 400;
/// The model's rates are trusted from so many probes on.
constexpr double kEnoughProbes = 20;
/// A prefix that runs deeper than the model's rates alone would allow is watched more closely: a
/// change of its questions has to show within so many uses.
constexpr int kLongestGapWhenDeep = 12;
constexpr size_t kMaxPrefixes = 10000;

void add(std::map<int, Tally>& tallies, const std::vector<int>& ladder, const ProbeVerdict& verdict,
         double memory) {
  for (const int value : ladder) {
    if (value > verdict.good && value < verdict.bad) continue;
    Tally& tally = tallies[value];
    tally.num += 1;
    if (value >= verdict.bad) tally.bad += 1;
    if (tally.num <= memory) continue;
    tally.bad *= memory / tally.num;
    tally.num = memory;
  }
}

}  // namespace

CanvasKind CanvasKind::of(int prefix_len, int total_len, int gen_length) {
  const int ratio = static_cast<int>(int64_t{100} * prefix_len / std::max(total_len, 1));
  return {ratio / 10 * 10, static_cast<int>(std::bit_ceil(static_cast<unsigned>(gen_length)))};
}

std::vector<LadderStep> ProbeStats::ladder(const std::vector<int>& values, const Key& key,
                                           std::map<int, Tally> Tallies::*which) const {
  const auto look_up = [](const std::map<int, Tally>& tallies, int value) {
    const auto it = tallies.find(value);
    return it == tallies.end() ? Tally{} : it->second;
  };
  const auto own = own_.find(key);
  const auto model = model_.find(key.second);
  std::vector<LadderStep> steps;
  for (const int value : values) {
    LadderStep step{value, {}, {}};
    if (own != own_.end()) step.own = look_up(own->second.tallies.*which, value);
    if (model != model_.end()) step.model = look_up(model->second.*which, value);
    steps.push_back(step);
  }
  return steps;
}

std::vector<LadderStep> ProbeStats::depths(const Hash128& prefix, const CanvasKind& kind) const {
  return ladder(settings_.depths, {prefix, kind}, &Tallies::depths);
}

std::vector<LadderStep> ProbeStats::commits(const Hash128& prefix, const CanvasKind& kind) const {
  return ladder(kCommitLadder, {prefix, kind}, &Tallies::commits);
}

int ProbeStats::safe_depth(const Hash128& prefix, const CanvasKind& kind) const {
  return greatest_safe(depths(prefix, kind), settings_.max_disagreement);
}

int ProbeStats::safe_commits(const Hash128& prefix, const CanvasKind& kind) const {
  return std::max(1, greatest_safe(commits(prefix, kind), settings_.max_disagreement));
}

bool ProbeStats::knows(const CanvasKind& kind) const {
  const auto model = model_.find(kind);
  return model != model_.end() && model->second.num_probes >= kEnoughProbes;
}

bool ProbeStats::take_turn(const Hash128& prefix, const CanvasKind& kind) {
  if (!own_.contains({prefix, kind}) && own_.size() >= kMaxPrefixes) drop_oldest();
  Own& own = own_[{prefix, kind}];
  own.last_use = ++now_;
  ++own.uses;
  if (own.probing || own.uses < own.next_probe) return false;
  if (settings_.probe_first == 0 && settings_.probe_rate == 0) return false;
  return own.probing = true;
}

void ProbeStats::give_up(const Hash128& prefix, const CanvasKind& kind) {
  const auto it = own_.find({prefix, kind});
  if (it != own_.end()) it->second.probing = false;
}

void ProbeStats::record(const Hash128& prefix, const CanvasKind& kind, const ProbeVerdict& depth,
                        const ProbeVerdict* commits) {
  const int before = safe_depth(prefix, kind);
  Own& own = own_[{prefix, kind}];
  Tallies& model = model_[kind];
  add(own.tallies.depths, settings_.depths, depth, kOwnMemory);
  add(model.depths, settings_.depths, depth, kModelMemory);
  if (commits) {
    add(own.tallies.commits, kCommitLadder, *commits, kOwnMemory);
    add(model.commits, kCommitLadder, *commits, kModelMemory);
  }
  own.tallies.num_probes += 1;
  model.num_probes += 1;
  own.probing = false;
  ++version_;
  plan_next({prefix, kind}, own, before);
}

/// When the prefix is probed again. A probe costs about as much as the request, so it has to be
/// worth it: at once while the outcome changes what is done or while all outcomes so far promise a
/// greater depth, else at growing distance, in the end `probe_rate`.
void ProbeStats::plan_next(const Key& key, Own& own, int depth_before) {
  const std::vector<LadderStep> steps = depths(key.first, key.second);
  const int depth = greatest_safe(steps, settings_.max_disagreement);
  const bool promises = std::ranges::any_of(steps, [&](const LadderStep& step) {
    return step.value > depth && step.own.num > 0 && step.own.bad == 0;
  });
  std::vector<LadderStep> model_only = steps;
  for (LadderStep& step : model_only) step.own = {};
  const bool is_deep = depth > greatest_safe(model_only, settings_.max_disagreement);

  const double rate = std::max(settings_.probe_rate, 1e-6);
  int longest = own.tallies.num_probes < settings_.probe_first
                    ? own.gap * 2
                    : static_cast<int>(std::min(1.0 / rate, 1e6));
  if (is_deep) longest = std::min(longest, kLongestGapWhenDeep);
  if (depth != depth_before || promises || !knows(key.second)) {
    own.gap = 1;
  } else {
    own.gap = std::clamp(own.gap * 2, 1, std::max(longest, 1));
  }
  if (settings_.probe_rate == 0 && own.tallies.num_probes >= settings_.probe_first) {
    own.next_probe = INT64_MAX;
  } else if (settings_.probe_rate >= 1) {
    own.next_probe = own.uses + 1;
  } else {
    own.next_probe = own.uses + own.gap;
  }
}

void ProbeStats::drop_oldest() {
  const auto oldest =
      std::ranges::min_element(own_, {}, [](const auto& item) { return item.second.last_use; });
  own_.erase(oldest);
}

ProbeReport ProbeStats::describe(const Key& key) const {
  ProbeReport report;
  report.ratio_percent = key.second.ratio_percent;
  report.gen_length = key.second.gen_length;
  report.depths = depths(key.first, key.second);
  report.commits = commits(key.first, key.second);
  report.depth = safe_depth(key.first, key.second);
  report.refresh_commits = safe_commits(key.first, key.second);
  return report;
}

std::vector<ProbeReport> ProbeStats::report(const Hash128& prefix) const {
  std::vector<ProbeReport> reports;
  for (auto it = own_.lower_bound({prefix, {}}); it != own_.end() && it->first.first == prefix;
       ++it) {
    reports.push_back(describe(it->first));
  }
  return reports;
}

std::vector<ProbeReport> ProbeStats::report_model() const {
  std::vector<ProbeReport> reports;
  for (const auto& [kind, tallies] : model_) reports.push_back(describe({Hash128{}, kind}));
  return reports;
}

}  // namespace bicached
