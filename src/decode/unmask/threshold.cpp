#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

/// Fast-dLLM's confidence-aware parallel decoding (arXiv 2505.22618, section 3.3): every position
/// whose probability reaches the threshold, the most probable one always.
class Threshold final : public Unmasker {
 public:
  explicit Threshold(const DecodeParams& params)
      : threshold_(static_cast<float>(value_of(kThreshold, params))) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress&) const override {
    std::vector<int> chosen =
        indices_where(candidates, [&](const Candidate& c) { return c.probability >= threshold_; });
    if (chosen.empty()) chosen.push_back(most_probable(candidates));
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
          make<Threshold>};
}

}  // namespace bicached
