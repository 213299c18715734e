#include <algorithm>

#include "bicached/depth_policy.h"

namespace bicached {
namespace {

/// What is assumed of a model that was never probed, and its weight.
constexpr double kPriorRate = 0.5, kPriorWeight = 4;

Tally& operator+=(Tally& sum, const Tally& tally) {
  sum.bad += tally.bad;
  sum.num += tally.num;
  return sum;
}

}  // namespace

Tally nearest_outcomes(const LadderStep& step, double enough) {
  Tally near = step.own;
  for (size_t i = step.relatives.size(); i-- > 1 && near.num < enough;) near += step.relatives[i];
  return near;
}

double estimated_disagreement(const LadderStep& step) {
  const auto& [near_probes, all_weight] = step.evidence;
  Tally all = step.own;
  for (const Tally& tally : step.relatives) all += tally;
  const double rate = (all.bad + kPriorWeight * kPriorRate) / (all.num + kPriorWeight);
  Tally near = nearest_outcomes(step, near_probes);
  const double missing = near_probes - near.num;
  if (missing > 0 && !step.relatives.empty() && step.relatives.front().num > 0) {
    const Tally& others = step.relatives.front();
    const double share = std::min(1.0, missing / others.num);
    near += {share * others.bad, share * others.num};
  }
  return (near.bad + all_weight * rate) / (near.num + all_weight);
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
