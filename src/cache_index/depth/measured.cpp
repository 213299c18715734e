#include "cache_index/depth/depth_policies.h"

namespace bicached {
namespace {

/// Eighths of the layers: closer together where it goes wrong first and less is at stake. Six at
/// the most, since an entry keeps a hidden state for each.
std::vector<int> depths(int num_layers, int, const DepthTable*) {
  std::vector<int> ladder;
  for (const int eighths : {1, 2, 3, 4, 6, 8}) {
    const int depth = num_layers * eighths / 8;
    if (depth > 0 && (ladder.empty() || depth > ladder.back())) ladder.push_back(depth);
  }
  return ladder;
}

}  // namespace

/// Ours (DESIGN 6). Knows nothing at first, and then reuses nothing.
const DepthPolicy kMeasuredPolicy{"measured", "By the outcome of probes of this prefix.",
                                  true,       true,
                                  false,      [](const PrefixUse& use) { return use.proven_depth; },
                                  depths};

}  // namespace bicached
