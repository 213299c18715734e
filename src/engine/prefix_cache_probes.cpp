// How probes begin, go on and end.
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "engine/prefix_cache.h"

namespace bicached {
namespace {

/// How the shadow goes on. Where positions are decided sure or not, what comes of another order
/// shows only in a course of its own, as with plans inside a request.
Shadow::Course course_of(const ReuseLearner::Trial& trial) {
  const bool may_follow = trial.is_shared && !trial.subject.has_quota;
  return may_follow ? Shadow::Course::kOfRequest : Shadow::Course::kOwn;
}

}  // namespace

/// The request is decoded under the plan that the tried one is compared with, its shadow under the
/// tried one. False: there is no room, and the request is as before.
bool PrefixCache::start_probe(const GenerateRequest& request, CacheUse& use) {
  const ReuseLearner::Trial& trial = *use.trial;
  const int length = request.longest_canvas();
  Reuse compared_with = use.reuse, tried = use.reuse;
  if (trial.is_shared) {
    tried.depth = learner_.depth_step(trial.step);
    if (!trial.is_proof) compared_with.depth = 0;
  } else {
    static_cast<InsidePlan&>(tried) = learner_.inside_step(trial.step);
    if (!trial.is_proof) static_cast<InsidePlan&>(compared_with) = {};
  }
  try {
    Lease slab = lease_slab(denoiser_, length);
    if (!slab) return false;
    const bool keeps_states = tried.own_states(length, info_.num_layers) > 0;
    Lease own = keeps_states ? entries_.own_states(tried, length) : Lease();
    if (keeps_states && !own) return false;
    if (tried.depth > 0 && !entries_.load(*use.entry, slab.id(), tried.depth)) return false;
    const PrefixStates states{tried.depth > 0 ? use.held.id() : kNoId, own.id()};
    auto shadow =
        std::make_unique<Shadow>(request, info_, tried, std::move(slab), states, course_of(trial));
    learner_.begin(trial);
    use.shadow_own = std::move(own);
    use.shadow = std::move(shadow);
  } catch (const std::exception& error) {
    log_warn(std::string("a probe could not be begun: ") + error.what());
    return false;
  }
  use.reuse = compared_with;
  ++probes_running_;
  return true;
}

void PrefixCache::advance_probe(CacheUse& use, std::span<const RowResult> results,
                                std::span<const RowResult> of_request,
                                const std::vector<Commit>& commits) {
  // The canvas of a shadow is another one: what can't go on there is no fault of the request.
  const bool goes_on = contain("a probe could not go on",
                               [&] { use.shadow->advance(results, of_request, commits); });
  if (!goes_on || !use.shadow->agrees()) end_probe(use, {}, false);
}

bool PrefixCache::drop_probe(CacheUse& use) {
  if (!use.shadow || !use.shadow->is_running()) return false;
  end_probe(use, {}, false);
  return true;
}

void PrefixCache::end_probe(CacheUse& use, const GenerationStats& stats, bool is_complete) {
  const ReuseLearner::Trial trial = *std::exchange(use.trial, std::nullopt);
  const auto shadow = std::exchange(use.shadow, nullptr);
  if (is_complete) shadow->conclude();
  use.shadow_own.reset();
  --probes_running_;
  // A difference is one, however the request ended. A plan inside a request that left out no more
  // than the other, in a request of one forward for example, agrees with nothing.
  const GenerationStats& of_plan = shadow->stats();
  const auto at_depth_0 = [](const Reuse& reuse, const GenerationStats& of) {
    return of.row_layers + reuse.saved_row_layers(of.num_refreshes);
  };
  const bool left_out_more =
      trial.is_shared || at_depth_0(shadow->plan(), of_plan) * stats.num_forwards <
                             at_depth_0(use.reuse, stats) * of_plan.num_forwards;
  const bool is_known = is_complete && left_out_more && shadow->num_checks() > 0;
  std::optional<bool> agrees;
  if (is_known || !shadow->agrees()) agrees = shadow->agrees();
  stats_.probe_checks += shadow->num_checks();
  stats_.probe_row_layers += of_plan.row_layers;
  stats_.probes += agrees ? 1 : 0;
  stats_.probe_disagreements += agrees && !*agrees ? 1 : 0;
  // Had what is in use not been watched, the request would have run as its shadow did. It may go on
  // without it, as careful as it began.
  const int64_t of_watch = is_complete ? stats.row_layers : static_cast<int64_t>(trial.cost);
  const int64_t spent =
      trial.is_proof ? of_plan.row_layers : std::max(of_watch, of_plan.row_layers);
  contain("what a probe found could not be kept", [&] {
    is_complete || agrees ? learner_.end(trial, agrees, spent) : learner_.drop(trial, spent);
  });
}

}  // namespace bicached
