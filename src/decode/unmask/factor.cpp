#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

// The default is dInfer's.
constexpr UnmaskerParam kFactor{
    {"factor", 0, 100, false, false, ""}, 1.0, "the greater, the more tokens a forward"};

/// Factor-based parallel decoding as dInfer does it (arXiv 2505.22618, section 3.3): of the
/// probabilities c0 >= c1 >= ... the leading ones while c_i >= 1 - factor / (i + 2). A walk that
/// reaches the last candidate takes it too, passed or not.
class Factor final : public Unmasker {
 public:
  explicit Factor(const DecodeParams& params)
      : factor_(static_cast<float>(value_of(kFactor, params))) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress&) const override {
    const std::vector<double> scores = probabilities(candidates);
    std::vector<float> sorted(scores.begin(), scores.end());
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const int last = static_cast<int>(sorted.size()) - 1;
    int i = 1;
    while (i < last &&
           sorted[static_cast<size_t>(i)] >= 1.0f - factor_ / static_cast<float>(i + 2)) {
      ++i;
    }
    return best_of(scores, i >= last ? last + 1 : i);
  }

 private:
  float factor_;
};

}  // namespace

UnmaskerInfo factor_unmasker() {
  return {"factor",
          "As many as their probabilities justify together (Fast-dLLM, dInfer).",
          {kFactor},
          make<Factor>};
}

}  // namespace bicached
