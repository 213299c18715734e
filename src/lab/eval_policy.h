#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bicached/depth_policy.h"
#include "bicached/request.h"
#include "bicached/settings.h"

namespace bicached {

/// A side of the comparison.
struct EvalPolicy {
  std::string label;         // as given: "fixed:4"
  std::string name;          // of depth_policy_table()
  std::optional<int> depth;  // of `fixed`
};

/// "off,fixed:4,measured". `intra` is `fixed:0`: reuse inside a request only. Throws
/// kInvalidSettings for a name that there is not and a depth over the model's layers.
std::vector<EvalPolicy> parse_eval_policies(const std::string& text, int num_layers);

/// The server's side of a comparison: entries have all depths that any of the policies may choose.
/// `state_dir` is only read, since what a comparison learns is not the server's. Throws
/// kInvalidSettings when there is `table` but no table, or none of this model's depth.
CacheSettings eval_cache_settings(CacheSettings settings, const std::vector<EvalPolicy>& policies,
                                  int num_layers);

CacheParams eval_cache_params(const EvalPolicy& policy);

}  // namespace bicached
