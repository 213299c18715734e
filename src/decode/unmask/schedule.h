#pragma once

#include "bicached/unmasker.h"

namespace bicached {

/// Time at the last step of Schedule::kTimesteps, as Dream's `eps`; for all that use a schedule.
inline constexpr UnmaskerParam kEps{
    {"eps", 0, 0.5, false, false, ""}, 0.001, "the time that schedule timesteps ends at"};

/// Share of the masked positions that the step decides by the schedule, 0 to 1. With kTimesteps
/// 1 - s / t of the times t, s around the step, 1 in the last one (Dream, in float32 as there).
float step_share(const BlockProgress& progress, double eps);

/// The number of positions that the step decides by the schedule: 0 to progress.num_masked.
int step_quota(const BlockProgress& progress, double eps);

}  // namespace bicached
