#include "cache_index/depth/depth_policies.h"

namespace bicached {
namespace {

/// What the cache of an autoregressive server does. Here to show why that is wrong for a model
/// whose attention looks both ways.
class FullPolicy final : public DepthPolicy {
 public:
  int choose(const PrefixUse& use) const override {
    return use.prefix_len == 0 ? 0 : use.num_layers;
  }
};

}  // namespace

std::unique_ptr<DepthPolicy> make_full_policy(const DepthPolicyParams&) {
  return std::make_unique<FullPolicy>();
}

std::vector<int> full_depths(const DepthPolicyParams&, int num_layers) { return {num_layers}; }

}  // namespace bicached
