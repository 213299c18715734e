#include "bicached/depth_policy.h"

namespace bicached {
namespace {

/// So many probes of a prefix and its nearest relatives speak for themselves.
constexpr double kNearProbes = 6;
/// Weight, in probes, of what farther relatives say. Small, since prefixes fall into classes: with
/// the demonstration model 1 of 121 requests about word rules, orders and sums decided otherwise
/// at full depth, and 216 of 274 about lists.
constexpr double kFarWeight = 0.2;
/// What is assumed of a model that was never probed, and its weight.
constexpr double kPriorRate = 0.5, kPriorWeight = 1;

}  // namespace

double estimated_disagreement(const LadderStep& step) {
  Tally near = step.own, far;
  for (auto tally = step.relatives.rbegin(); tally != step.relatives.rend(); ++tally) {
    Tally& pool = near.num < kNearProbes ? near : far;
    pool.bad += tally->bad;
    pool.num += tally->num;
  }
  const double far_rate = (far.bad + kPriorWeight * kPriorRate) / (far.num + kPriorWeight);
  return (near.bad + kFarWeight * far_rate) / (near.num + kFarWeight);
}

int greatest_safe(std::span<const LadderStep> ladder, double max_disagreement) {
  int safe = 0;
  for (const LadderStep& step : ladder) {
    if (estimated_disagreement(step) > max_disagreement) break;
    safe = step.value;
  }
  return safe;
}

int measured_depth(std::span<const LadderStep> ladder, double max_disagreement) {
  const int safe = greatest_safe(ladder, max_disagreement);
  if (ladder.empty() || safe == ladder.back().value) return safe;
  const int margin = (ladder.back().value + 5) / 6;
  int depth = 0;
  for (const LadderStep& step : ladder) {
    if (step.value <= safe - margin) depth = step.value;
  }
  return depth;
}

}  // namespace bicached
