#include "decode/unmask/quota.h"

namespace bicached {

/// Dream's `maskgit_plus` (MaskGIT, arXiv 2202.04200, without its noise): low_confidence with
/// `alg_temp`.
UnmaskerInfo maskgit_plus_unmasker() {
  return {"maskgit_plus",
          "The most probable tokens first, a given number a step (Dream).",
          {kEps, kAlgTemp},
          [](const DecodeParams& params) -> std::unique_ptr<Unmasker> {
            return std::make_unique<QuotaUnmasker>(
                params, [](const Candidate& c, double) { return double{c.probability}; }, true);
          }};
}

}  // namespace bicached
