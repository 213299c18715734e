#include "cache/similarity.h"

#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <map>
#include <string>

#include "bicached/error.h"
#include "decode/leases.h"
#include "model/torch_errors.h"

namespace bicached {
namespace {

Lease open_slab(Denoiser& denoiser, int num_tokens) {
  if (Lease slab = lease_slab(denoiser, num_tokens)) return slab;
  throw Error(ErrorCode::kOutOfMemory,
              "the K/V pool of " + std::to_string(denoiser.capacity_tokens()) +
                  " tokens has no room for " + std::to_string(num_tokens) +
                  " more; give it more with kv_cache_bytes",
              "kv_cache_bytes");
}

/// All rows of a canvas, attending to each other.
RowGroup whole_canvas(std::vector<TokenId> ids, SlabId slab) {
  RowGroup group;
  group.slab = slab;
  group.end = group.key_end = static_cast<int>(ids.size());
  group.tokens = std::move(ids);
  return group;
}

/// The first `num_tokens` rows of a slab, all heads of a token side by side: float32 [P, Hkv D].
at::Tensor leading_rows(const at::Tensor& layer, const KvPool& pool, SlabId slab, int num_tokens) {
  return layer.narrow(0, pool.slabs().range(slab).begin, num_tokens).flatten(1).to(at::kFloat);
}

/// Of all layers; float32 [L], on the pool's device.
at::Tensor compare(const KvPool& pool, int num_layers, SlabId alone, SlabId context,
                   int prefix_len) {
  std::vector<at::Tensor> means;
  for (int layer = 0; layer < num_layers; ++layer) {
    const auto similarity = [&](const at::Tensor& tensor) {
      return at::cosine_similarity(leading_rows(tensor, pool, alone, prefix_len),
                                   leading_rows(tensor, pool, context, prefix_len), 1)
          .mean();
    };
    means.push_back(similarity(pool.keys(layer)).add(similarity(pool.values(layer))).div(2));
  }
  return at::stack(means);
}

}  // namespace

std::vector<std::vector<double>> measure_similarity(Denoiser& denoiser, const KvPool& pool,
                                                    std::span<const PrefixInContext> canvases) {
  const c10::InferenceMode mode;
  std::vector<Lease> slabs;
  Forward forward;
  const auto add = [&](std::vector<TokenId> ids) {
    slabs.push_back(open_slab(denoiser, static_cast<int>(ids.size())));
    forward.groups.push_back(whole_canvas(std::move(ids), slabs.back().id()));
    return slabs.back().id();
  };
  std::map<std::vector<TokenId>, SlabId> prefixes;
  std::vector<std::pair<SlabId, SlabId>> pairs;  // of each canvas: its prefix alone, the whole
  for (const PrefixInContext& canvas : canvases) {
    std::vector<TokenId> prefix(canvas.ids.begin(), canvas.ids.begin() + canvas.prefix_len);
    auto alone = prefixes.find(prefix);
    if (alone == prefixes.end()) alone = prefixes.emplace(prefix, add(prefix)).first;
    pairs.emplace_back(alone->second, add(canvas.ids));
  }
  denoiser.run(forward);
  return with_torch_errors("similarity", [&] {
    std::vector<std::vector<double>> results;
    for (size_t i = 0; i < canvases.size(); ++i) {
      const at::Tensor layers = compare(pool, denoiser.info().num_layers, pairs[i].first,
                                        pairs[i].second, canvases[i].prefix_len)
                                    .cpu();
      const float* data = layers.const_data_ptr<float>();
      results.emplace_back(data, data + layers.numel());
    }
    return results;
  });
}

std::vector<DepthTable::Step> table_steps(std::span<const RatioSimilarity> ratios,
                                          double threshold) {
  std::vector<DepthTable::Step> steps;
  int deepest = 0;
  for (const RatioSimilarity& ratio : ratios) {
    const auto below = std::ranges::find_if_not(
        ratio.layers, [threshold](double similarity) { return similarity > threshold; });
    const int depth = static_cast<int>(below - ratio.layers.begin());
    if (depth <= deepest) continue;
    steps.push_back({ratio.ratio_percent, depth});
    deepest = depth;
  }
  return steps;
}

}  // namespace bicached
