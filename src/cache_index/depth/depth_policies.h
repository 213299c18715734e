#pragma once

#include "bicached/depth_policy.h"

namespace bicached {

// One a file; the table names them.
extern const DepthPolicy kOffPolicy, kFixedPolicy, kFullPolicy, kTablePolicy, kMeasuredPolicy;

}  // namespace bicached
