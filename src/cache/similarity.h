#pragma once

#include <span>
#include <vector>

#include "cache_index/depth/depth_table.h"
#include "model/kv_pool.h"

namespace bicached {

/// A canvas and how much of it is the prefix: 0 < prefix_len < ids.size().
struct PrefixInContext {
  std::vector<TokenId> ids;
  int prefix_len = 0;
};

/// How far a prefix's K and V change when it stands in context instead of alone: by layer, the mean
/// over prefix tokens of the cosine similarity of K and of V, and the mean of the two; all heads of
/// a token are one vector (arXiv 2606.07571, section 4).
///
/// The published measure takes K before RoPE. The slabs have it after, which makes no difference: a
/// token has the same position alone and in context, so both its vectors are rotated alike, and a
/// rotation changes neither lengths nor the angle between them.
///
/// Runs all canvases in one packed forward, rows: every different prefix once, and every canvas.
/// `pool` is the denoiser's. Throws kOutOfMemory when their slabs don't fit together. Engine thread
/// only.
std::vector<std::vector<double>> measure_similarity(Denoiser& denoiser, const KvPool& pool,
                                                    std::span<const PrefixInContext> canvases);

/// Mean similarity of the conversations with one ratio.
struct RatioSimilarity {
  int ratio_percent = 0;
  int num_conversations = 0;
  std::vector<double> layers;
};

/// The steps of a depth table, as published: the depth of a ratio is the number of leading layers
/// strictly above `threshold`; a ratio has a step only if its depth exceeds all depths before it.
/// `ratios` ascend.
std::vector<DepthTable::Step> table_steps(std::span<const RatioSimilarity> ratios,
                                          double threshold);

}  // namespace bicached
