#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

/// Factor-based parallel decoding as dInfer does it (arXiv 2505.22618, section 3.3): of the
/// probabilities c0 >= c1 >= ... the leading ones while c_i >= 1 - factor / (i + 2). A walk that
/// reaches the last candidate takes it too, passed or not.
class Factor final : public Unmasker {
 public:
  explicit Factor(float factor) : factor_(factor) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress&) const override {
    const auto probability = [](const Candidate& c) { return c.probability; };
    std::vector<float> sorted;
    for (const Candidate& c : candidates) sorted.push_back(c.probability);
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const int last = static_cast<int>(sorted.size()) - 1;
    int i = 1;
    while (i < last &&
           sorted[static_cast<size_t>(i)] >= 1.0f - factor_ / static_cast<float>(i + 2)) {
      ++i;
    }
    return best_candidates(candidates, i >= last ? last + 1 : i, probability);
  }

 private:
  float factor_;
};

}  // namespace

std::unique_ptr<Unmasker> make_factor(const DecodeParams& params) {
  return std::make_unique<Factor>(params.factor);
}

}  // namespace bicached
