#pragma once

#include <vector>

#include "bicached/request.h"

namespace bicached {

/// What a canvas reuses of a shared prefix: positions [0, prefix_len) take K/V of the layers below
/// `depth` from an entry. prefix_len 0: nothing. depth 0: reuse inside the request only. After
/// `refresh_interval` forwards or `refresh_commits` committed tokens it is recomputed in context.
struct PrefixReuse {
  int prefix_len = 0;
  int depth = 0;
  int refresh_interval = 16;
  int refresh_commits = 16;
};

/// Where a canvas stands, as far as the choice of rows needs it.
struct PlanState {
  int length = 0;       // T
  int num_layers = 0;   // L
  int block_begin = 0;  // the active block [s, e)
  int block_end = 0;
  bool at_block_start = true;  // no forward of this block has run yet
  bool refresh_due = false;
  int logits_shift = 0;  // logits of row j - shift serve position j
  IntraCache intra_cache = IntraCache::kNone;
  PrefixReuse prefix;
};

/// Rows [begin, end) that enter at a layer.
struct RowSpan {
  int begin = 0;
  int end = 0;
  int enter_layer = 0;
  bool operator==(const RowSpan&) const = default;
};

/// Which rows of the canvas the next forward runs: the whole table of DESIGN 2, and the only place
/// that knows the caching techniques. Spans ascend by `begin` and don't overlap.
std::vector<RowSpan> plan_rows(const PlanState& state);

}  // namespace bicached
