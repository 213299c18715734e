#include "bicached/error.h"
#include "cache_index/depth/depth_policies.h"

namespace bicached {
namespace {

std::vector<int> no_depths(const DepthPolicyParams&, int) { return {}; }

constexpr DepthPolicyInfo kPolicies[] = {
    {"off", "No reuse of keys and values between requests.", false, false, make_off_policy,
     no_depths},
    {"fixed", "A given number of layers.", true, false, make_fixed_policy, fixed_depths},
    {"full", "All layers: shows what the cache of an autoregressive server would do.", true, false,
     make_full_policy, full_depths},
    {"table", "By the prefix's share of the canvas, from an offline profile (arXiv 2606.07571).",
     true, false, make_table_policy, table_depths},
    {"measured", "By the outcome of probes of this prefix.", true, true, make_measured_policy,
     measured_depths},
};

}  // namespace

std::span<const DepthPolicyInfo> depth_policy_table() { return kPolicies; }

std::vector<std::string> depth_policy_names() {
  std::vector<std::string> names;
  for (const DepthPolicyInfo& policy : kPolicies) names.emplace_back(policy.name);
  return names;
}

const DepthPolicyInfo& find_depth_policy(const std::string& name) {
  std::string known;
  for (const DepthPolicyInfo& policy : kPolicies) {
    if (name == policy.name) return policy;
    known += (known.empty() ? "" : ", ") + std::string(policy.name);
  }
  throw Error(ErrorCode::kInvalidRequest,
              "cache.policy is \"" + name.substr(0, 64) + "\"; allowed is one of " + known,
              "cache.policy");
}

}  // namespace bicached
