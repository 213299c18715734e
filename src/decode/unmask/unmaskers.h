#pragma once

#include <algorithm>
#include <memory>
#include <numeric>

#include "bicached/unmasker.h"

namespace bicached {

// One row a file of this folder; the table is in unmasker_table.cpp.
UnmaskerInfo entropy_unmasker();
UnmaskerInfo entropy_bound_unmasker();
UnmaskerInfo entropy_multi_block_unmasker();
UnmaskerInfo factor_unmasker();
UnmaskerInfo joint_threshold_unmasker();
UnmaskerInfo klass_unmasker();
UnmaskerInfo low_confidence_unmasker();
UnmaskerInfo low_confidence_dynamic_unmasker();
UnmaskerInfo maskgit_plus_unmasker();
UnmaskerInfo origin_unmasker();
UnmaskerInfo quota_threshold_unmasker();
UnmaskerInfo random_unmasker();
UnmaskerInfo threshold_unmasker();
UnmaskerInfo topk_margin_unmasker();

/// Fast-dLLM's default.
inline constexpr UnmaskerParam kThreshold{
    {"threshold", 0, 1, false, false, ""}, 0.9, "a token needs this probability"};

/// What the request says, else the default.
inline double value_of(const UnmaskerParam& param, const DecodeParams& params) {
  const auto found = params.params.find(param.limit.name);
  return found == params.params.end() ? param.default_value : found->second;
}

/// UnmaskerInfo::make of an algorithm that is made of the request's parameters.
template <class Algorithm>
std::unique_ptr<Unmasker> make(const DecodeParams& params) {
  return std::make_unique<Algorithm>(params);
}

/// Indices, ascending, of the candidates that fit.
template <class Fits>
std::vector<int> indices_where(std::span<const Candidate> candidates, Fits fits) {
  std::vector<int> indices;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (fits(candidates[i])) indices.push_back(static_cast<int>(i));
  }
  return indices;
}

/// Index of the most probable candidate, the first of equals. `candidates` is not empty.
inline int most_probable(std::span<const Candidate> candidates) {
  const auto best = std::ranges::max_element(candidates, {}, &Candidate::probability);
  return static_cast<int>(best - candidates.begin());
}

/// Indices of scores from the greatest to the least; of equal scores the first goes first.
inline std::vector<int> descending(const std::vector<double>& scores) {
  std::vector<int> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  return order;
}

/// Indices of the `count` greatest scores, ascending; of equal scores the first.
inline std::vector<int> best_of(const std::vector<double>& scores, int count) {
  std::vector<int> order = descending(scores);
  order.resize(std::min(order.size(), static_cast<size_t>(std::max(count, 0))));
  std::sort(order.begin(), order.end());
  return order;
}

/// The candidates' probabilities, as scores.
inline std::vector<double> probabilities(std::span<const Candidate> candidates) {
  std::vector<double> scores;
  for (const Candidate& candidate : candidates) scores.push_back(candidate.probability);
  return scores;
}

/// Indices, ascending, of all candidates above the threshold if these are at least `count`, else of
/// the `count` most probable.
inline std::vector<int> above_or_best(std::span<const Candidate> candidates, float threshold,
                                      int count) {
  const std::vector<int> above =
      indices_where(candidates, [&](const Candidate& c) { return c.probability > threshold; });
  const int least = std::min(count, static_cast<int>(candidates.size()));
  return static_cast<int>(above.size()) >= least ? above
                                                 : best_of(probabilities(candidates), least);
}

}  // namespace bicached
