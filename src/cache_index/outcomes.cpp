#include "cache_index/outcomes.h"

#include <algorithm>

namespace bicached {
namespace {

/// Beyond so many outcomes old ones fade: a rate of some percent has to show in what is left, and a
/// plan that differed once gets another chance after as many.
constexpr double kMemory = 256;

}  // namespace

void Outcomes::record(int step, bool agrees) {
  Tally& now = steps_[static_cast<size_t>(step)];
  (agrees ? now.agreed : now.differed) += 1;
  double num = 0;
  for (const Tally& tally : steps_) num += tally.agreed + tally.differed;
  if (num <= kMemory) return;
  for (Tally& tally : steps_) {
    tally.agreed *= kMemory / num;
    tally.differed *= kMemory / num;
  }
}

void Outcomes::doubt() {
  for (Tally& tally : steps_) tally.agreed /= 2;
}

void Outcomes::add(int step, Tally tally) {
  if (step < 0 || step >= num_steps() || !(tally.agreed >= 0) || !(tally.differed >= 0)) return;
  steps_[static_cast<size_t>(step)].agreed += std::min(tally.agreed, kMemory);
  steps_[static_cast<size_t>(step)].differed += std::min(tally.differed, kMemory);
}

Tally Outcomes::implied(int step) const {
  Tally sum{step <= assumed_.first ? assumed_.second : 0, 0};
  for (int other = 0; other < num_steps(); ++other) {
    if (other >= step) sum.agreed += at(other).agreed;
    if (other <= step) sum.differed += at(other).differed;
  }
  return sum;
}

double Outcomes::estimate(int step) const {
  const Tally all = implied(step);
  return (all.differed + 0.5) / (all.agreed + all.differed + 1);
}

int Outcomes::safe_step(double max_disagreement) const {
  int step = num_steps() - 1;
  while (step >= 0 && estimate(step) > max_disagreement) --step;
  return step;
}

double Outcomes::missing(int step, double max_disagreement) const {
  const Tally all = implied(step);
  const double needed = (all.differed + 0.5) / max_disagreement - 1;
  return std::max(0.0, needed - all.agreed - all.differed);
}

}  // namespace bicached
