#include "cache_index/depth/depth_policies.h"

namespace bicached {

const DepthPolicy kOffPolicy{"off",
                             "No reuse of keys and values between requests.",
                             false,
                             false,
                             false,
                             [](const PrefixUse&) { return 0; },
                             [](int, int, const DepthTable*) { return std::vector<int>(); }};

}  // namespace bicached
