#pragma once

#include <memory>

#include "bicached/depth_policy.h"

namespace bicached {

// One a file; the table names them.
std::unique_ptr<DepthPolicy> make_off_policy(const DepthPolicyParams& params);
std::unique_ptr<DepthPolicy> make_fixed_policy(const DepthPolicyParams& params);
std::unique_ptr<DepthPolicy> make_full_policy(const DepthPolicyParams& params);
std::unique_ptr<DepthPolicy> make_table_policy(const DepthPolicyParams& params);
std::unique_ptr<DepthPolicy> make_measured_policy(const DepthPolicyParams& params);

}  // namespace bicached
