#include "decode/unmask/schedule.h"
#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

constexpr UnmaskerParam kEditingThreshold{{"editing_threshold", 0, 1, true, false, ""},
                                          0.9,
                                          "a decided token gives way to one more probable than "
                                          "this"};
constexpr UnmaskerParam kMaxEditRounds{{"max_edit_rounds", 0, 64, true, true, "forwards"},
                                       16,
                                       "how long a block without masks may still be edited"};

/// LLaDA2.1: masked positions as by `low_confidence_dynamic`.
/// At the same time a decided token of the block is replaced where another is its position's most
/// probable one, above the editing threshold. The block ends when nothing is masked and a forward
/// edits nothing.
class JointThreshold final : public Unmasker {
 public:
  explicit JointThreshold(const DecodeParams& params)
      : threshold_(static_cast<float>(value_of(kThreshold, params))),
        editing_threshold_(static_cast<float>(value_of(kEditingThreshold, params))),
        eps_(value_of(kEps, params)),
        max_rounds_(static_cast<int>(value_of(kMaxEditRounds, params))) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress& progress) const override {
    return above_or_best(candidates, threshold_, std::max(1, step_quota(progress, eps_)));
  }

  std::vector<int> revise(std::span<const Candidate> decided) const override {
    return indices_where(decided, [&](const Candidate& c) {
      return c.token != c.current && c.probability > editing_threshold_;
    });
  }

  int max_revisions() const override { return max_rounds_; }

 private:
  float threshold_, editing_threshold_;
  double eps_;
  int max_rounds_;
};

}  // namespace

UnmaskerInfo joint_threshold_unmasker() {
  return {"joint_threshold",
          "As low_confidence_dynamic, while tokens of the block that are decided give way to more "
          "probable ones (LLaDA2.1).",
          {kThreshold, kEditingThreshold, kMaxEditRounds, kEps},
          make<JointThreshold>};
}

}  // namespace bicached
