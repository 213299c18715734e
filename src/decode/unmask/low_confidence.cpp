#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

/// LLaDA's low-confidence remasking (arXiv 2502.09992, algorithm 5): a fixed number of positions a
/// step, the most probable first. With m masks and S steps each step decides m / S, the first
/// m mod S steps one more.
class LowConfidence final : public Unmasker {
 public:
  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress& progress) const override {
    return best_candidates(candidates, min_choices(progress),
                           [](const Candidate& c) { return c.probability; });
  }

  int min_choices(const BlockProgress& progress) const override {
    if (progress.step >= progress.num_steps) return 0;
    const int masks = progress.num_masked_at_start, steps = progress.num_steps;
    return masks / steps + (progress.step < masks % steps ? 1 : 0);
  }

  bool counts_steps() const override { return true; }
};

}  // namespace

UnmaskerInfo low_confidence_unmasker() {
  return {"low_confidence",
          "A fixed number of tokens a step, most probable first (LLaDA).",
          {},
          [](const DecodeParams&) -> std::unique_ptr<Unmasker> {
            return std::make_unique<LowConfidence>();
          }};
}

}  // namespace bicached
