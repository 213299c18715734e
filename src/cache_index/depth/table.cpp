#include <algorithm>

#include "cache_index/depth/depth_policies.h"
#include "cache_index/depth/depth_table.h"

namespace bicached {
namespace {

int choose(const PrefixUse& use) {
  const int depth = use.table->depth_at(ratio_percent(use.prefix_len, use.total_len));
  return std::min(depth, use.num_layers);
}

std::vector<int> depths(int, int, const DepthTable* table) {
  std::vector<int> all;
  for (const DepthTable::Step& step : table->steps) all.push_back(step.depth);
  return all;
}

}  // namespace

const DepthPolicy kTablePolicy{
    "table", "By the prefix's share of the canvas, from an offline profile (arXiv 2606.07571).",
    true,    false,
    true,    choose,
    depths};

}  // namespace bicached
