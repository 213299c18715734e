#include <algorithm>

#include "bicached/error.h"
#include "cache_index/depth/depth_policies.h"
#include "cache_index/depth/depth_table.h"

namespace bicached {
namespace {

/// The published method (arXiv 2606.07571): depth by the prefix's share of the canvas.
class TablePolicy final : public DepthPolicy {
 public:
  explicit TablePolicy(const DepthTable& table) : table_(table) {}
  int choose(const PrefixUse& use) const override {
    if (use.prefix_len == 0) return 0;
    const int depth = table_.depth_at(ratio_percent(use.prefix_len, use.total_len));
    return std::min(depth, use.num_layers);
  }

 private:
  const DepthTable& table_;
};

}  // namespace

std::unique_ptr<DepthPolicy> make_table_policy(const DepthPolicyParams& params) {
  if (!params.table) {
    throw Error(ErrorCode::kInvalidRequest,
                "cache.policy is \"table\", but this server has no depth table; it is started with "
                "--depth-table FILE",
                "cache.policy");
  }
  return std::make_unique<TablePolicy>(*params.table);
}

std::vector<int> table_depths(const DepthPolicyParams& params, int) {
  std::vector<int> depths;
  if (!params.table) return depths;
  for (const DepthTable::Step& step : params.table->steps) depths.push_back(step.depth);
  return depths;
}

}  // namespace bicached
