#include <algorithm>

#include "cache_index/depth/depth_policies.h"

namespace bicached {
namespace {

class FixedPolicy final : public DepthPolicy {
 public:
  explicit FixedPolicy(int depth) : depth_(depth) {}
  int choose(const PrefixUse& use) const override {
    return use.prefix_len == 0 ? 0 : std::clamp(depth_, 0, use.num_layers);
  }

 private:
  const int depth_;
};

}  // namespace

std::unique_ptr<DepthPolicy> make_fixed_policy(const DepthPolicyParams& params) {
  return std::make_unique<FixedPolicy>(params.depth);
}

std::vector<int> fixed_depths(const DepthPolicyParams& params, int num_layers) {
  return {std::clamp(params.depth, 0, num_layers)};
}

}  // namespace bicached
