#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace bicached {

/// Probes of one step of a ladder. Fractions: old outcomes fade.
struct Tally {
  double agreed = 0;
  double differed = 0;
};

/// What probes found of a ladder of plans, from the most careful one (step 0) to the boldest.
///
/// A plan that agrees speaks for every more careful one, a plan that differs against every bolder
/// one. The probability that a step differs is estimated as (differed + 1/2) / (probes + 1), the
/// mean under Jeffreys' prior: it takes 1 / (2 m) - 1 probes without a difference until it is down
/// to m, and nothing but probes of this ladder counts.
class Outcomes {
 public:
  explicit Outcomes(int num_steps) : steps_(static_cast<size_t>(num_steps)) {}

  void record(int step, bool agrees);
  /// Something changed: what agreed until now counts half.
  void doubt();
  /// Outcomes of earlier (a file); what can't be one is ignored.
  void add(int step, Tally tally);
  /// Counts as so many probes of this step that agreed, though none was made here.
  void assume(int step, double agreed) { assumed_ = {step, agreed}; }

  int num_steps() const { return static_cast<int>(steps_.size()); }
  /// Probes of this very step.
  const Tally& at(int step) const { return steps_[static_cast<size_t>(step)]; }
  /// With what the other steps say of it, and what is assumed.
  Tally implied(int step) const;
  double estimate(int step) const;
  /// The boldest step whose estimate is at most `max_disagreement`; -1: none.
  int safe_step(double max_disagreement) const;
  /// Whether no difference that still counts speaks against it.
  bool is_open(int step) const { return implied(step).differed < 0.5; }
  /// Probes without a difference that are missing until it is safe.
  double missing(int step, double max_disagreement) const;

 private:
  std::vector<Tally> steps_;
  std::pair<int, double> assumed_{-1, 0};
};

}  // namespace bicached
