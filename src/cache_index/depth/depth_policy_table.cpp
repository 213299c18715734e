#include "bicached/error.h"
#include "cache_index/depth/depth_policies.h"

namespace bicached {

std::span<const DepthPolicy> depth_policy_table() {
  static const DepthPolicy table[] = {kOffPolicy, kFixedPolicy, kFullPolicy, kTablePolicy,
                                      kMeasuredPolicy};
  return table;
}

std::vector<std::string> depth_policy_names() {
  std::vector<std::string> names;
  for (const DepthPolicy& policy : depth_policy_table()) names.emplace_back(policy.name);
  return names;
}

const DepthPolicy& find_depth_policy(const std::string& name, bool has_table) {
  std::string known;
  for (const DepthPolicy& policy : depth_policy_table()) {
    known += (known.empty() ? "" : ", ") + std::string(policy.name);
    if (name != policy.name) continue;
    if (has_table || !policy.needs_table) return policy;
    throw Error(ErrorCode::kInvalidRequest,
                "the policy \"" + name +
                    "\" needs a depth table, and the server has none: --depth-table FILE",
                "cache.policy");
  }
  throw Error(ErrorCode::kInvalidRequest,
              "cache.policy is \"" + name.substr(0, 64) + "\"; allowed is one of " + known,
              "cache.policy");
}

}  // namespace bicached
