#include "cache_index/depth/depth_policies.h"

namespace bicached {
namespace {

/// Ours: the greatest depth at which requests like this one would have decided the same tokens, by
/// the outcome of probes (DESIGN 6). Knows nothing at first, and then reuses nothing.
class MeasuredPolicy final : public DepthPolicy {
 public:
  explicit MeasuredPolicy(double max_disagreement) : max_disagreement_(max_disagreement) {}
  int choose(const PrefixUse& use) const override {
    return use.prefix_len == 0 ? 0 : measured_depth(use.probes, max_disagreement_);
  }

 private:
  const double max_disagreement_;
};

}  // namespace

std::unique_ptr<DepthPolicy> make_measured_policy(const DepthPolicyParams& params) {
  return std::make_unique<MeasuredPolicy>(params.max_disagreement);
}

}  // namespace bicached
