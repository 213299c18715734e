#include "decode/unmask/quota.h"

namespace bicached {

/// LLaDA's random remasking (arXiv 2502.09992, algorithm 4): which positions is left to chance.
UnmaskerInfo random_unmasker() {
  return {"random",
          "Any positions, a given number a step (LLaDA).",
          {kEps},
          [](const DecodeParams& params) -> std::unique_ptr<Unmasker> {
            return std::make_unique<QuotaUnmasker>(
                params, [](const Candidate&, double noise) { return noise; }, false);
          }};
}

}  // namespace bicached
