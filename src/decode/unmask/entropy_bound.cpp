#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

// The default is that of d2Cache.
constexpr UnmaskerParam kEntropyBound{{"entropy_bound", 0, 100, false, false, "nats"},
                                      0.001,
                                      "how much the tokens of a forward may depend on one another, "
                                      "in nats"};

/// The EB-sampler (arXiv 2505.24857): the most probable positions, as many as have a sum of
/// entropies without the greatest of them within the bound. That sum bounds what deciding them
/// together loses against one after the other.
class EntropyBound final : public Unmasker {
 public:
  explicit EntropyBound(const DecodeParams& params) : bound_(value_of(kEntropyBound, params)) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress&) const override {
    std::vector<int> order = descending(probabilities(candidates));
    double sum = 0, greatest = 0;
    int count = 0;
    for (const int i : order) {
      const double entropy = candidates[static_cast<size_t>(i)].entropy;
      sum += entropy;
      greatest = std::max(greatest, entropy);
      if (count > 0 && sum - greatest > bound_) break;
      ++count;
    }
    order.resize(static_cast<size_t>(count));
    std::ranges::sort(order);
    return order;
  }

 private:
  double bound_;
};

}  // namespace

UnmaskerInfo entropy_bound_unmasker() {
  return {"entropy_bound",
          "The most probable tokens, as many as their entropies allow together (EB-sampler).",
          {kEntropyBound},
          make<EntropyBound>};
}

}  // namespace bicached
