#pragma once

#include <algorithm>
#include <memory>
#include <numeric>

#include "bicached/unmasker.h"

namespace bicached {

// One maker a file of this folder; the table is in unmasker_table.cpp.
std::unique_ptr<Unmasker> make_factor(const DecodeParams& params);
std::unique_ptr<Unmasker> make_low_confidence(const DecodeParams& params);
std::unique_ptr<Unmasker> make_threshold(const DecodeParams& params);

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
