#include "decode/unmask/schedule.h"
#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

/// Dream's `origin`, the reverse process as the theory has it (arXiv 2508.15487): each masked
/// position is decided with the same probability, whatever the model says of it. The noise alone
/// says which, so that a step that decides none needs no forward.
class Origin final : public Unmasker {
 public:
  explicit Origin(const DecodeParams& params) : eps_(value_of(kEps, params)) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress& progress) const override {
    const double share = step_share(progress, eps_);
    std::vector<int> chosen;
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (progress.noise[i] < share) chosen.push_back(static_cast<int>(i));
    }
    return chosen;
  }

  int min_choices(const BlockProgress& progress) const override {
    const double share = step_share(progress, eps_);
    return static_cast<int>(
        std::ranges::count_if(progress.noise, [share](double noise) { return noise < share; }));
  }

  bool counts_steps() const override { return true; }

 private:
  double eps_;
};

}  // namespace

UnmaskerInfo origin_unmasker() {
  return {"origin",
          "Each position with the probability of the step, whatever the model says (Dream).",
          {kEps},
          make<Origin>};
}

}  // namespace bicached
