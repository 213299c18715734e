#include "bicached/error.h"
#include "cache_index/depth/depth_policies.h"

namespace bicached {
namespace {

constexpr DepthPolicyInfo kPolicies[] = {
    {"off", "No reuse of keys and values between requests.", make_off_policy},
    {"fixed", "A given number of layers.", make_fixed_policy},
    {"full", "All layers: shows what the cache of an autoregressive server would do.",
     make_full_policy},
    {"table", "By the prefix's share of the canvas, from an offline profile (arXiv 2606.07571).",
     make_table_policy},
    {"measured", "By the outcome of probes on live traffic.", make_measured_policy},
};

}  // namespace

std::span<const DepthPolicyInfo> depth_policy_table() { return kPolicies; }

std::vector<std::string> depth_policy_names() {
  std::vector<std::string> names;
  for (const DepthPolicyInfo& policy : kPolicies) names.emplace_back(policy.name);
  return names;
}

std::unique_ptr<DepthPolicy> make_depth_policy(const std::string& name,
                                               const DepthPolicyParams& params) {
  std::string known;
  for (const DepthPolicyInfo& policy : kPolicies) {
    if (name == policy.name) return policy.make(params);
    known += (known.empty() ? "" : ", ") + std::string(policy.name);
  }
  throw Error(ErrorCode::kInvalidRequest,
              "cache.policy is \"" + name.substr(0, 64) + "\"; allowed is one of " + known,
              "cache.policy");
}

}  // namespace bicached
