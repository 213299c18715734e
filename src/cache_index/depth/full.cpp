#include "cache_index/depth/depth_policies.h"

namespace bicached {

/// Here to show why that is wrong for a model whose attention looks both ways.
const DepthPolicy kFullPolicy{
    "full",
    "All layers: shows what the cache of an autoregressive server would do.",
    true,
    false,
    false,
    [](const PrefixUse& use) { return use.num_layers; },
    [](int num_layers, int, const DepthTable*) { return std::vector{num_layers}; }};

}  // namespace bicached
