#include "cache_index/depth/depth_policies.h"

namespace bicached {
namespace {

class OffPolicy final : public DepthPolicy {
 public:
  int choose(const PrefixUse&) const override { return 0; }
};

}  // namespace

std::unique_ptr<DepthPolicy> make_off_policy(const DepthPolicyParams&) {
  return std::make_unique<OffPolicy>();
}

}  // namespace bicached
