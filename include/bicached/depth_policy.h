#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

namespace bicached {

/// A request about to reuse a prefix: all a depth policy may look at.
struct PrefixUse {
  int prefix_len = 0;    // tokens; 0: nothing is shared
  int total_len = 0;     // T: prompt, generation and suffix
  int num_layers = 0;    // L
  int proven_depth = 0;  // layers: by probes of this very prefix; only for policies that learn
};

/// How many leading layers of a request take the prefix's keys and values from the cache.
///
/// Pure; any thread. One implementation per file in src/cache_index/depth/, one line in
/// `depth_policy_table()`.
class DepthPolicy {
 public:
  virtual ~DepthPolicy() = default;
  /// 0 to num_layers; 0: nothing is taken over from other requests.
  virtual int choose(const PrefixUse& use) const = 0;
};

struct DepthTable;

struct DepthPolicyParams {
  int depth = 0;                      // `fixed`
  const DepthTable* table = nullptr;  // `table`; not owned
};

/// A row of the table of policies: also what the rest of the program needs to know of one.
struct DepthPolicyInfo {
  const char* name;
  const char* about;  // a sentence
  bool reuses;        // false: requests take no part in the cache at all
  bool learns;        // probes decide, for the part inside a request too
  std::unique_ptr<DepthPolicy> (*make)(const DepthPolicyParams& params);
  /// Depths it can choose in a model of L layers, ascending, > 0: what entries have to serve.
  std::vector<int> (*depths)(const DepthPolicyParams& params, int num_layers);
};

/// All policies, in the order they are shown to users.
std::span<const DepthPolicyInfo> depth_policy_table();
/// Names of the depth policies a request may ask for (`cache.policy`).
std::vector<std::string> depth_policy_names();
/// Throws kInvalidRequest (param "cache.policy") for an unknown name.
const DepthPolicyInfo& find_depth_policy(const std::string& name);

}  // namespace bicached
