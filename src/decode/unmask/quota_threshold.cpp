#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

/// Fast-dLLM's `confidence_threshold` for Dream without blocks: of m masks and S steps the best m /
/// S are looked at in each step, and those that earlier steps left over. The best one is decided,
/// the others if they reach the threshold. What is left after S steps follows in further ones.
class QuotaThreshold final : public Unmasker {
 public:
  explicit QuotaThreshold(const DecodeParams& params)
      : threshold_(static_cast<float>(value_of(kThreshold, params))) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress& progress) const override {
    const int best = most_probable(candidates);
    std::vector<int> chosen = best_of(probabilities(candidates), num_looked_at(progress));
    std::erase_if(chosen, [&](int i) {
      return i != best && candidates[static_cast<size_t>(i)].probability < threshold_;
    });
    return chosen;
  }

  int min_choices(const BlockProgress& progress) const override {
    return std::min(num_looked_at(progress), 1);
  }
  bool counts_steps() const override { return true; }

 private:
  /// The quotas up to this step less what was decided.
  static int num_looked_at(const BlockProgress& progress) {
    const int64_t masks = progress.num_masked_at_start;
    const int64_t steps = std::min(progress.step + 1, progress.num_steps);
    const int64_t decided = masks - progress.num_masked;
    return static_cast<int>(std::max<int64_t>(masks * steps / progress.num_steps - decided, 0));
  }

  float threshold_;
};

}  // namespace

UnmaskerInfo quota_threshold_unmasker() {
  return {"quota_threshold",
          "Of a given number a step those that reach the threshold, at least one (Fast-dLLM for "
          "Dream).",
          {kThreshold},
          make<QuotaThreshold>};
}

}  // namespace bicached
