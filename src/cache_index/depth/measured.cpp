#include <algorithm>

#include "cache_index/depth/depth_policies.h"

namespace bicached {
namespace {

/// Ours: the depth at which probes of this very prefix decided the same tokens (DESIGN 6). Knows
/// nothing at first, and then reuses nothing.
class MeasuredPolicy final : public DepthPolicy {
 public:
  int choose(const PrefixUse& use) const override {
    return use.prefix_len == 0 ? 0 : use.proven_depth;
  }
};

}  // namespace

std::unique_ptr<DepthPolicy> make_measured_policy(const DepthPolicyParams&) {
  return std::make_unique<MeasuredPolicy>();
}

/// Eighths of the layers: closer together where it goes wrong first and less is at stake.
std::vector<int> measured_depths(const DepthPolicyParams&, int num_layers) {
  std::vector<int> depths;
  for (const int eighths : {1, 2, 3, 4, 6, 8}) {
    const int depth = num_layers * eighths / 8;
    if (depth > 0 && (depths.empty() || depth > depths.back())) depths.push_back(depth);
  }
  return depths;
}

}  // namespace bicached
