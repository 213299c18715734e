#include "app/eval_policy.h"

#include <algorithm>

#include "app/flag_values.h"
#include "bicached/error.h"

namespace bicached {
namespace {

constexpr const char* kFlag = "--policies";
const std::string kFixed = "fixed:";

[[noreturn]] void throw_unknown(const std::string& text) {
  std::vector<std::string> known = depth_policy_names();
  std::replace(known.begin(), known.end(), std::string("fixed"), std::string("fixed:N"));
  throw Error(ErrorCode::kInvalidSettings,
              std::string(kFlag) + " has '" + text + "'; known are " + join_names(known) +
                  " (N layers; fixed:0 = reuse inside a request only)",
              kFlag);
}

EvalPolicy parse_one(const std::string& text, int num_layers) {
  if (text == "intra") return {text, "fixed", 0};
  if (text.starts_with(kFixed)) {
    const int depth = parse_count("--policies fixed:N", text.substr(kFixed.size()), 0, num_layers);
    return {text, "fixed", depth};
  }
  const std::vector<std::string> names = depth_policy_names();
  const bool is_known = std::find(names.begin(), names.end(), text) != names.end();
  if (!is_known || text == "fixed") throw_unknown(text);
  return {text, text, std::nullopt};
}

bool has(const std::vector<EvalPolicy>& policies, const std::string& name) {
  return std::any_of(policies.begin(), policies.end(),
                     [&](const EvalPolicy& policy) { return policy.name == name; });
}

/// Depths of the table file, which has to be there and of a model with as many layers.
std::vector<int> table_depths(const std::string& path, int num_layers) {
  if (path.empty()) {
    throw Error(ErrorCode::kInvalidSettings,
                "--policies has 'table', which needs a file: --depth-table FILE, as in "
                "configs/depth",
                "depth_table");
  }
  const DepthTable table = DepthTable::load(path);
  if (table.num_layers != num_layers) {
    throw Error(ErrorCode::kInvalidSettings,
                path + ": made for a model of " + std::to_string(table.num_layers) +
                    " layers; this one has " + std::to_string(num_layers),
                "depth_table");
  }
  std::vector<int> depths;
  for (const DepthTable::Step& step : table.steps) depths.push_back(step.depth);
  return depths;
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
  std::vector<int>& depths = settings.more_depths;
  for (const EvalPolicy& policy : policies) {
    if (policy.depth.value_or(0) > 0) depths.push_back(*policy.depth);
  }
  if (has(policies, "full")) depths.push_back(num_layers);
  if (has(policies, "table")) {
    const std::vector<int> more = table_depths(settings.depth_table, num_layers);
    depths.insert(depths.end(), more.begin(), more.end());
  }
  // The ladder of depths that `measured` chooses from is the server's policy's; the other policies
  // need no more than what stands above.
  settings.policy = has(policies, "measured") ? "measured" : "off";
  for (const EvalPolicy& policy : policies) {
    if (settings.policy == "off") settings.policy = policy.name;
  }
  settings.depth = 0;
  settings.state_is_read_only = true;
  return settings;
}

CacheParams eval_cache_params(const EvalPolicy& policy, const EvalRefresh& refresh) {
  CacheParams params;
  params.policy = policy.name;
  params.depth = policy.depth;
  if (policy.name == "off") return params;
  params.refresh_interval = refresh.interval;
  params.refresh_commits = refresh.commits;
  if (policy.name != "measured") params.refresh_depth = refresh.depth;  // it finds its own
  return params;
}

}  // namespace bicached
