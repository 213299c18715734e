#include "decode/unmask/schedule.h"
#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

constexpr UnmaskerParam kKlThreshold{{"kl_threshold", 0, 100, false, false, "nats"},
                                     0.01,
                                     "a position is stable below this divergence of two steps, in "
                                     "nats"};

/// KLASS (arXiv 2511.05664): every position whose distribution was stable over the last two steps
/// and whose token is more probable than the threshold; where there is none, as many as the
/// schedule says, the most probable first. The history of a position begins with its block, so that
/// the first two steps of a block go by the schedule. Keeps a row of logits a masked position of
/// the active block.
class Klass final : public Unmasker {
 public:
  explicit Klass(const DecodeParams& params)
      : kl_threshold_(value_of(kKlThreshold, params)),
        threshold_(value_of(kThreshold, params)),
        eps_(value_of(kEps, params)) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress& progress) const override {
    std::vector<int> chosen = indices_where(candidates, [&](const Candidate& c) {
      return c.divergence < kl_threshold_ && c.probability > threshold_;
    });
    if (!chosen.empty()) return chosen;
    return best_of(probabilities(candidates), std::max(1, step_quota(progress, eps_)));
  }

  bool has_quota() const override { return true; }
  bool wants_divergence() const override { return true; }

 private:
  double kl_threshold_, threshold_, eps_;
};

}  // namespace

UnmaskerInfo klass_unmasker() {
  return {"klass",
          "Every probable token whose distribution no longer moves, else a given number (KLASS).",
          {kThreshold, kKlThreshold, kEps},
          make<Klass>};
}

}  // namespace bicached
