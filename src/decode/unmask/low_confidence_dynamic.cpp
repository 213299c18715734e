#include "decode/unmask/schedule.h"
#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

/// SDAR's `low_confidence_dynamic`, which is also how LLaDA2.0 decodes: every position whose
/// probability is above the threshold if these are at least as many as the schedule says, else as
/// many as it says, the most probable first.
class LowConfidenceDynamic final : public Unmasker {
 public:
  explicit LowConfidenceDynamic(const DecodeParams& params)
      : threshold_(static_cast<float>(value_of(kThreshold, params))),
        eps_(value_of(kEps, params)) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress& progress) const override {
    return above_or_best(candidates, threshold_, std::max(1, step_quota(progress, eps_)));
  }

  bool has_quota() const override { return true; }

 private:
  float threshold_;
  double eps_;
};

}  // namespace

UnmaskerInfo low_confidence_dynamic_unmasker() {
  return {"low_confidence_dynamic",
          "Every token above the threshold if these are as many as a given number a step, else "
          "that number of the most probable ones (SDAR, LLaDA2.0).",
          {kThreshold, kEps},
          make<LowConfidenceDynamic>};
}

}  // namespace bicached
