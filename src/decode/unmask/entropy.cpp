#include "decode/unmask/quota.h"

namespace bicached {

/// Dream's `entropy`: the score is the negative entropy of a position's distribution.
UnmaskerInfo entropy_unmasker() {
  return {"entropy",
          "The least entropy first, a given number a step (Dream).",
          {kEps, kAlgTemp},
          [](const DecodeParams& params) -> std::unique_ptr<Unmasker> {
            return std::make_unique<QuotaUnmasker>(
                params, [](const Candidate& c, double) { return -double{c.entropy}; }, true);
          }};
}

}  // namespace bicached
