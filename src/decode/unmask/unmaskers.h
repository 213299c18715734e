#pragma once

#include <algorithm>
#include <memory>
#include <numeric>

#include "bicached/unmasker.h"

namespace bicached {

// One row a file of this folder; the table is in unmasker_table.cpp.
UnmaskerInfo factor_unmasker();
UnmaskerInfo low_confidence_unmasker();
UnmaskerInfo threshold_unmasker();

/// Fast-dLLM's default.
inline constexpr UnmaskerParam kThreshold{
    {"threshold", 0, 1, false, false, "probability"}, 0.9, "a token needs this probability"};

/// What the request says, else the default.
inline double value_of(const UnmaskerParam& param, const DecodeParams& params) {
  const auto found = params.params.find(param.limit.name);
  return found == params.params.end() ? param.default_value : found->second;
}

/// Index of the most probable candidate, the first of equals. `candidates` is not empty.
inline int most_probable(std::span<const Candidate> candidates) {
  const auto best = std::max_element(
      candidates.begin(), candidates.end(),
      [](const Candidate& a, const Candidate& b) { return a.probability < b.probability; });
  return static_cast<int>(best - candidates.begin());
}

/// Indices of the `count` candidates with the greatest score(candidate), ascending.
template <typename Score>
std::vector<int> best_candidates(std::span<const Candidate> candidates, int count, Score score) {
  std::vector<int> order(candidates.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return score(candidates[static_cast<size_t>(a)]) > score(candidates[static_cast<size_t>(b)]);
  });
  order.resize(std::min(order.size(), static_cast<size_t>(std::max(count, 0))));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace bicached
