#include "decode/unmask/quota.h"

namespace bicached {

/// Dream's `topk_margin` (arXiv 2502.06768, top probability margin).
UnmaskerInfo topk_margin_unmasker() {
  return {"topk_margin",
          "The greatest lead over the second token first, a given number a step (Dream).",
          {kEps, kAlgTemp},
          [](const DecodeParams& params) -> std::unique_ptr<Unmasker> {
            return std::make_unique<QuotaUnmasker>(
                params, [](const Candidate& c, double) { return double{c.margin}; }, true);
          }};
}

}  // namespace bicached
