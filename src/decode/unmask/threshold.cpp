#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

/// Fast-dLLM's confidence-aware parallel decoding (arXiv 2505.22618, section 3.3): every position
/// whose probability reaches the threshold, the most probable one always.
class Threshold final : public Unmasker {
 public:
  explicit Threshold(float threshold) : threshold_(threshold) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress&) const override {
    const int best = most_probable(candidates);
    std::vector<int> chosen;
    for (int i = 0; i < static_cast<int>(candidates.size()); ++i) {
      if (i == best || candidates[static_cast<size_t>(i)].probability >= threshold_) {
        chosen.push_back(i);
      }
    }
    return chosen;
  }

 private:
  float threshold_;
};

}  // namespace

UnmaskerInfo threshold_unmasker() {
  return {"threshold",
          "Every token whose probability reaches the threshold, at least one (Fast-dLLM).",
          {kThreshold},
          [](const DecodeParams& params) -> std::unique_ptr<Unmasker> {
            return std::make_unique<Threshold>(static_cast<float>(value_of(kThreshold, params)));
          }};
}

}  // namespace bicached
