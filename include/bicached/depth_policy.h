#pragma once

#include <span>
#include <string>
#include <vector>

namespace bicached {

struct DepthTable;

/// A request about to reuse a prefix: all a depth policy may look at.
struct PrefixUse {
  int prefix_len = 0;                 // tokens, > 0
  int total_len = 0;                  // T: prompt, generation and suffix
  int num_layers = 0;                 // L
  int proven_depth = 0;               // layers, by probes of this very prefix; for those that learn
  int fixed_depth = 0;                // layers, as client or operator say; `fixed`
  const DepthTable* table = nullptr;  // `table`; not owned
};

/// How many leading layers of a request take the prefix's keys and values from the cache. One file
/// each in src/cache_index/depth/ and one line in `depth_policy_table()`.
struct DepthPolicy {
  const char* name;
  const char* about;  // a sentence
  bool reuses;        // false: requests take no part in the cache at all
  bool learns;        // probes decide, for the part inside a request too
  bool needs_table;
  /// 0 to num_layers; 0: nothing is taken over from other requests. Pure; any thread.
  int (*choose)(const PrefixUse& use);
  /// Depths it can choose in a model of L layers with this table (or null), for a `fixed_depth`:
  /// what entries have to serve.
  std::vector<int> (*depths)(int num_layers, int fixed_depth, const DepthTable* table);
};

/// All policies, in the order they are shown to users.
std::span<const DepthPolicy> depth_policy_table();
/// Names of the depth policies a request may ask for (`cache.policy`).
std::vector<std::string> depth_policy_names();
/// Throws kInvalidRequest (param "cache.policy") for an unknown name, or one that needs a table
/// where there is none.
const DepthPolicy& find_depth_policy(const std::string& name, bool has_table);

}  // namespace bicached
