#include "decode/planner.h"

#include <algorithm>

namespace bicached {

std::vector<RowGroup> plan_rows(const PlanState& state) {
  std::vector<RowGroup> groups;
  // Rows that enter behind the last layer don't run.
  const auto add = [&](int begin, int end, int enter_layer) {
    if (begin >= end || enter_layer >= state.num_layers) return;
    if (!groups.empty() && groups.back().end == begin && groups.back().enter_layer == enter_layer) {
      groups.back().end = end;
      return;
    }
    RowGroup& group = groups.emplace_back();
    group.begin = begin;
    group.end = end;
    group.enter_layer = enter_layer;
    group.key_end = state.length;
  };
  if (state.attention_block > 0) {
    // What is final stays so: nothing behind a block changes what its rows see. The block before
    // the active one ran with masks last, so it runs once more, beside it.
    for (int begin = state.settled_end, end = 0; begin < state.block_end; begin = end) {
      end = std::min(begin / state.attention_block * state.attention_block + state.attention_block,
                     state.length);
      RowGroup& group = groups.emplace_back();
      group.begin = begin;
      group.end = group.key_end = end;
    }
    return groups;
  }
  const Reuse& reuse = state.reuse;
  const int first_row = std::max(0, state.block_begin - state.rows_before_block);
  // A row before the block runs with the block, also where it is the prefix's last.
  const int prefix_end = std::min(reuse.prefix_len, first_row);

  // The prefix takes part only in a refresh, from its layer on.
  const int refresh_depth = state.at_first_forward ? 0 : reuse.refresh_depth;
  if (state.refresh_due) add(0, prefix_end, std::max(reuse.depth, refresh_depth));

  if (reuse.is_adaptive() && !state.at_first_forward) {
    if (state.refresh_due) {
      // What was generated in earlier blocks has other tokens than the first forward saw.
      const int generated = std::max(prefix_end, state.prompt_len - state.rows_before_block);
      add(prefix_end, generated, refresh_depth);
      add(generated, first_row, 0);
    }
    add(first_row, state.block_end, 0);
    if (state.refresh_due) add(state.block_end, state.length, refresh_depth);
    return groups;
  }

  // Everything behind the prefix, or inside a block what the intra-request cache leaves.
  const bool in_block = !state.at_block_start && (reuse.intra_cache == IntraCache::kPrefix ||
                                                  reuse.intra_cache == IntraCache::kDual);
  const bool only_block = in_block && reuse.intra_cache == IntraCache::kDual;
  add(in_block ? first_row : prefix_end, only_block ? state.block_end : state.length, 0);
  return groups;
}

int64_t row_layers(std::span<const RowGroup> groups, int num_layers) {
  int64_t sum = 0;
  for (const RowGroup& group : groups) {
    const int leave = group.leave_layer < 0 ? num_layers : group.leave_layer;
    sum += int64_t{group.num_rows()} * (leave - group.enter_layer);
  }
  return sum;
}

}  // namespace bicached
