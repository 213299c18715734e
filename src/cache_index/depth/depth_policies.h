#pragma once

#include <memory>
#include <vector>

#include "bicached/depth_policy.h"

namespace bicached {

// One policy a file; the table names them.
std::unique_ptr<DepthPolicy> make_off_policy(const DepthPolicyParams& params);
std::unique_ptr<DepthPolicy> make_fixed_policy(const DepthPolicyParams& params);
std::unique_ptr<DepthPolicy> make_full_policy(const DepthPolicyParams& params);
std::unique_ptr<DepthPolicy> make_table_policy(const DepthPolicyParams& params);
std::unique_ptr<DepthPolicy> make_measured_policy(const DepthPolicyParams& params);

std::vector<int> fixed_depths(const DepthPolicyParams& params, int num_layers);
std::vector<int> full_depths(const DepthPolicyParams& params, int num_layers);
std::vector<int> table_depths(const DepthPolicyParams& params, int num_layers);
/// The ladder that probes climb down: six steps at the most, an entry keeps a hidden state for
/// each.
std::vector<int> measured_depths(const DepthPolicyParams& params, int num_layers);

}  // namespace bicached
