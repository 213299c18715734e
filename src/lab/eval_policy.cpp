#include "lab/eval_policy.h"

#include <algorithm>

#include "app/flag_values.h"
#include "bicached/error.h"
#include "cache_index/depth/depth_table.h"

namespace bicached {
namespace {

constexpr const char* kFlag = "--policies";
const std::string kFixed = "fixed:";

[[noreturn]] void throw_unknown(const std::string& text) {
  std::vector<std::string> known = depth_policy_names();
  std::ranges::replace(known, std::string("fixed"), std::string("fixed:N"));
  throw Error(ErrorCode::kInvalidSettings,
              std::string(kFlag) + " has '" + text + "'; known are " + joined(known) +
                  " (N layers; fixed:0 = reuse inside a request only)",
              kFlag);
}

EvalPolicy parse_one(const std::string& text, int num_layers) {
  if (text == "intra") return {text, "fixed", 0};
  if (text.starts_with(kFixed)) {
    const int depth = parse_count("--policies fixed:N", text.substr(kFixed.size()), 0, num_layers);
    return {text, "fixed", depth};
  }
  if (!contains(depth_policy_names(), text) || text == "fixed") throw_unknown(text);
  return {text, text, std::nullopt};
}

}  // namespace

std::vector<EvalPolicy> parse_eval_policies(const std::string& text, int num_layers) {
  std::vector<EvalPolicy> policies;
  for (const std::string& name : split_names(text)) {
    policies.push_back(parse_one(name, num_layers));
  }
  if (policies.empty()) throw_unknown("");
  return policies;
}

CacheSettings eval_cache_settings(CacheSettings settings, const std::vector<EvalPolicy>& policies,
                                  int num_layers) {
  std::optional<DepthTable> table;
  if (!settings.depth_table.empty()) table = DepthTable::load(settings.depth_table, num_layers);
  for (const EvalPolicy& policy : policies) {
    const std::vector<int> depths = name_errors(kFlag, [&] {
      return find_depth_policy(policy.name, table.has_value())
          .depths(num_layers, policy.depth.value_or(0), table ? &*table : nullptr);
    });
    settings.more_depths.insert(settings.more_depths.end(), depths.begin(), depths.end());
  }
  // Every request names its policy.
  settings.policy = policies.front().name;
  settings.depth = policies.front().depth.value_or(0);
  settings.state_is_read_only = true;
  return settings;
}

CacheParams eval_cache_params(const EvalPolicy& policy) {
  CacheParams params;
  params.policy = policy.name;
  params.depth = policy.depth;
  return params;
}

}  // namespace bicached
