#pragma once

#include <cstdint>
#include <vector>

#include "bicached/denoiser.h"
#include "model/model_config.h"
#include "model/slab_allocator.h"

namespace bicached {

/// One row group while it takes part.
struct PlannedGroup {
  int group = 0;          // index into Forward::groups
  int64_t first_row = 0;  // of the packed tensor
  int64_t num_rows = 0;
};

/// Rows of the packed tensor that attend over the same keys: neighbouring groups of a canvas, since
/// nothing in attention depends on which of its rows they are.
struct AttentionSequence {
  int64_t first_row = 0;
  int64_t num_rows = 0;
  int64_t key_begin = 0;  // token of the pool where the canvas begins
  int64_t num_keys = 0;
};

/// Layers that run with the same rows, in the order of Forward::groups. Behind these may stand rows
/// that only fill the tensor up: token 0, position 0, slot -1, of no group and no sequence.
struct LayerSegment {
  int first_layer = 0;
  int end_layer = 0;
  std::vector<PlannedGroup> groups;
  std::vector<AttentionSequence> sequences;
  int64_t num_rows = 0;            // N, with those
  std::vector<int64_t> positions;  // [N] in the canvas: the rotary angle
  std::vector<int64_t> slots;      // [N] token of the pool that takes the row's K and V
};

/// A forward as numbers: what is where in the packed tensor, layer by layer. Example, L = 3, the
/// groups of `RowGroup`'s comment and a slab that begins at token 100 of the pool:
///
///     segment 0, layers [0, 2): 5 rows, positions 4..8, slots 104..108, keys 100 + [0, 9)
///     segment 1, layer 2:       9 rows, positions 4..8 0..3, one sequence of 9 rows
///
/// In the last layer only rows whose logits are wanted go beyond their K and V: nobody reads the
/// others' output.
struct ForwardPlan {
  std::vector<LayerSegment> segments;
  std::vector<TokenId> tokens;            // of the rows of segment 0
  std::vector<int64_t> wanted_rows;       // of the last segment, ascending, each once; then zeros
  std::vector<AttentionSequence> wanted;  // of those rows, packed among themselves
  std::vector<int64_t> logit_index;       // LogitRow i -> index into wanted_rows
};

/// Lays out a forward. Throws kInternal where a group breaks `RowGroup`'s rules: that is a defect
/// of the planner, and running it could read outside the pool.
ForwardPlan plan_forward(const Forward& forward, const ModelConfig& model,
                         const SlabAllocator& slabs);

/// The least of few numbers that is at least `size`: a multiple of `step`, or up to a sixteenth
/// more.
int64_t filled_size(int64_t size, int64_t step);
/// Fills a segment up with rows of nothing.
void fill_segment(ForwardPlan& plan, size_t segment, int64_t num_rows);
/// All segments, and the wanted rows: products of a few sizes serve all forwards.
void fill_plan(ForwardPlan& plan, int64_t step);

}  // namespace bicached
