#pragma once

#include <cmath>

#include "decode/unmask/schedule.h"
#include "decode/unmask/unmaskers.h"

namespace bicached {

/// Dream's `alg_temp`: how much chance the choice of positions has.
inline constexpr UnmaskerParam kAlgTemp{{"alg_temp", 0, 100, true, false, ""},
                                        0.0,
                                        "positions are drawn by softmax(score / alg_temp); 0 = the "
                                        "best ones"};

/// Algorithms that decide as many positions a step as the schedule says, those of the greatest
/// score first. With alg_temp they are drawn without replacement from softmax(score / alg_temp):
/// the greatest of score / alg_temp plus Gumbel noise.
class QuotaUnmasker final : public Unmasker {
 public:
  using Score = double (*)(const Candidate& candidate, double noise);

  QuotaUnmasker(const DecodeParams& params, Score score, bool has_alg_temp)
      : score_(score),
        eps_(value_of(kEps, params)),
        alg_temp_(has_alg_temp ? value_of(kAlgTemp, params) : 0.0) {}

  std::vector<int> choose(std::span<const Candidate> candidates,
                          const BlockProgress& progress) const override {
    std::vector<double> scores;
    for (size_t i = 0; i < candidates.size(); ++i) {
      double score = score_(candidates[i], progress.noise[i]);
      if (alg_temp_ > 0) score = score / alg_temp_ - std::log(-std::log(progress.noise[i]));
      scores.push_back(score);
    }
    return best_of(scores, min_choices(progress));
  }

  int min_choices(const BlockProgress& progress) const override {
    return step_quota(progress, eps_);
  }
  bool counts_steps() const override { return true; }

 private:
  Score score_;
  double eps_;
  double alg_temp_;
};

}  // namespace bicached
