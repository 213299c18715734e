#include "bicached/depth_policy.h"

namespace bicached {
namespace {

/// Weight of farther relatives in an estimate, in probes. Small, since prefixes fall into classes:
/// with the demonstration model 0 of 121 requests about word rules, orders and sums decided
/// otherwise at full depth, and 212 of 274 about lists. A few probes of near relatives tell more
/// than many of the rest.
constexpr double kFartherWeight = 0.5;
/// What is assumed of a model that was never probed.
constexpr double kPriorRate = 0.5;

}  // namespace

double estimated_disagreement(const LadderStep& step) {
  double rate = kPriorRate;
  const auto shrink = [&rate](const Tally& tally) {
    rate = (tally.bad + kFartherWeight * rate) / (tally.num + kFartherWeight);
  };
  for (const Tally& tally : step.relatives) shrink(tally);
  shrink(step.own);
  return rate;
}

int greatest_safe(std::span<const LadderStep> ladder, double max_disagreement) {
  int safe = 0;
  for (const LadderStep& step : ladder) {
    if (estimated_disagreement(step) > max_disagreement) break;
    safe = step.value;
  }
  return safe;
}

}  // namespace bicached
