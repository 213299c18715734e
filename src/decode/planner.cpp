#include "decode/planner.h"

#include <algorithm>

namespace bicached {

std::vector<RowSpan> plan_rows(const PlanState& state) {
  const int prefix_len = state.prefix.prefix_len;
  std::vector<RowSpan> spans;

  // The prefix takes part only in a refresh, from the depth on. At full depth no layer is left.
  if (prefix_len > 0 && state.refresh_due && state.prefix.depth < state.num_layers) {
    spans.push_back({0, prefix_len, state.prefix.depth});
  }

  // Everything behind the prefix, or inside a block what the intra-request cache leaves. A family
  // whose logits are shifted needs the row before the block as well.
  int begin = prefix_len, end = state.length;
  if (!state.at_block_start && state.intra_cache != IntraCache::kNone) {
    begin = std::max(prefix_len, state.block_begin - state.logits_shift);
    if (state.intra_cache == IntraCache::kDual) end = state.block_end;
  }
  if (!spans.empty() && spans.back().enter_layer == 0 && spans.back().end == begin) {
    spans.back().end = end;
  } else {
    spans.push_back({begin, end, 0});
  }
  return spans;
}

}  // namespace bicached
