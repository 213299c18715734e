#include "decode/unmask/schedule.h"

#include <algorithm>

namespace bicached {
namespace {

/// Entry `i` of the float32 linspace(1, eps, num_steps + 1), counted from the nearer end as torch
/// does: floor(n (1 - s / t)) may hang on the last bit.
float time_at(int i, int num_steps, float eps) {
  const float step = (eps - 1.0f) / static_cast<float>(num_steps);
  return i < (num_steps + 1) / 2 ? 1.0f + step * static_cast<float>(i)
                                 : eps - step * static_cast<float>(num_steps - i);
}

}  // namespace

float step_share(const BlockProgress& progress, double eps) {
  if (progress.schedule == Schedule::kEven) {
    if (progress.num_masked == 0) return 0.0f;
    return static_cast<float>(step_quota(progress, eps)) / static_cast<float>(progress.num_masked);
  }
  if (progress.step >= progress.num_steps - 1) return 1.0f;
  const auto end = static_cast<float>(eps);
  return 1.0f - time_at(progress.step + 1, progress.num_steps, end) /
                    time_at(progress.step, progress.num_steps, end);
}

int step_quota(const BlockProgress& progress, double eps) {
  if (progress.schedule == Schedule::kTimesteps) {
    return static_cast<int>(static_cast<float>(progress.num_masked) * step_share(progress, eps));
  }
  if (progress.step >= progress.num_steps) return 0;
  const int masks = progress.num_masked_at_start, steps = progress.num_steps;
  return std::min(masks / steps + (progress.step < masks % steps ? 1 : 0), progress.num_masked);
}

}  // namespace bicached
