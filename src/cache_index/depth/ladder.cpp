#include "bicached/depth_policy.h"

namespace bicached {
namespace {

/// Weight of the model's rate in a prefix's estimate, in probes; small, since prefixes differ:
/// some stand every depth, others none beyond a few layers.
constexpr double kModelWeight = 2;
/// What is assumed of a model that was never probed, and its weight in probes.
constexpr double kPriorRate = 0.5, kPriorWeight = 1;

}  // namespace

double estimated_disagreement(const LadderStep& step) {
  const double model =
      (step.model.bad + kPriorWeight * kPriorRate) / (step.model.num + kPriorWeight);
  return (step.own.bad + kModelWeight * model) / (step.own.num + kModelWeight);
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
