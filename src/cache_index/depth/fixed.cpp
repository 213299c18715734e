#include <algorithm>

#include "cache_index/depth/depth_policies.h"

namespace bicached {

const DepthPolicy kFixedPolicy{
    "fixed",
    "A given number of layers.",
    true,
    false,
    false,
    [](const PrefixUse& use) { return std::clamp(use.fixed_depth, 0, use.num_layers); },
    [](int num_layers, int depth, const DepthTable*) {
      return std::vector{std::clamp(depth, 0, num_layers)};
    }};

}  // namespace bicached
