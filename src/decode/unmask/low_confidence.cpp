#include "decode/unmask/quota.h"

namespace bicached {

/// LLaDA's low-confidence remasking (arXiv 2502.09992, algorithm 5).
UnmaskerInfo low_confidence_unmasker() {
  return {"low_confidence",
          "The most probable tokens first, a given number a step (LLaDA).",
          {kEps},
          [](const DecodeParams& params) -> std::unique_ptr<Unmasker> {
            return std::make_unique<QuotaUnmasker>(
                params, [](const Candidate& c, double) { return double{c.probability}; }, false);
          }};
}

}  // namespace bicached
