#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "bicached/denoiser.h"

namespace bicached {

/// What a canvas reuses, of a shared prefix and of its own earlier forwards.
///
/// Positions [0, prefix_len) take K/V of the layers below `depth` from an entry in the first
/// forward, which computes them in context from there on. prefix_len 0: no prefix is shared.
/// depth 0: reuse inside the request only.
///
/// A refresh computes them again from `refresh_depth` on: below it the K/V of the first forward
/// stay (those of the entry too, so that one below `depth` counts as `depth`).
///
/// With IntraCache::kAdaptive the same holds for all positions outside the active block: between
/// refreshes only the block runs, and in a refresh those whose token is still that of the first
/// forward enter at `refresh_depth`.
struct Reuse : InsidePlan {
  int prefix_len = 0;
  int depth = 0;

  bool is_adaptive() const { return intra_cache == IntraCache::kAdaptive; }
  /// How many leading positions of a canvas of `length` the first forward has to leave hidden
  /// states of, before `refresh_depth`, for refreshes to enter from.
  int own_states(int length, int num_layers) const {
    if (refresh_depth < 1 || refresh_depth >= num_layers) return 0;
    return is_adaptive() ? length : refresh_depth > depth ? prefix_len : 0;
  }
  /// Row-layers that a request does not run thanks to the shared entry. The first of its forwards
  /// counts as a refresh; the others save what the entry's depth spares beyond that of refreshes.
  int64_t saved_row_layers(int num_refreshes) const {
    if (num_refreshes == 0) return 0;
    const int in_refresh = std::max(0, depth - refresh_depth);
    return prefix_len * (depth + int64_t{num_refreshes - 1} * in_refresh);
  }
};

/// Where a canvas stands, as far as the choice of rows needs it.
struct PlanState {
  int length = 0;       // T
  int prompt_len = 0;   // positions before the first generated one
  int num_layers = 0;   // L
  int block_begin = 0;  // the active block [s, e)
  int block_end = 0;
  bool at_block_start = true;    // no forward of this block has run yet
  bool at_first_forward = true;  // no forward of the canvas has run yet
  bool refresh_due = false;
  /// How many rows before the block have logits for a masked position of it: with a shift of the
  /// logits 1 as long as the first one may be decided.
  int rows_before_block = 0;
  /// Of a model that attends block by block: how many positions such a block has, and the first
  /// position whose K/V are not final yet. 0: full attention.
  int attention_block = 0;
  int settled_end = 0;
  Reuse reuse;
};

/// Which rows of the canvas the next forward runs: the whole table of DESIGN 2, and the only place
/// that knows the caching techniques. Groups ascend by `begin` and don't overlap; slab, tokens and
/// entries are left to who knows them.
std::vector<RowGroup> plan_rows(const PlanState& state);

/// Rows times the layers they run.
int64_t row_layers(std::span<const RowGroup> groups, int num_layers);

}  // namespace bicached
