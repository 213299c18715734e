#include "cache_index/reuse_learner.h"

#include <algorithm>
#include <bit>
#include <climits>
#include <cmath>
#include <tuple>

namespace bicached {
namespace {

/// Of what reuse saved, so much may go into probes: the rest stays with whoever waits for answers.
constexpr double kShareOfSaved = 1.0 / 3;
/// Requests over which unused allowance fades, and the claim of a prefix that is not seen again.
constexpr double kAllowanceRequests = 1024, kClaimRequests = 128;
/// The weight of a finished request in the means of its kind.
constexpr double kCourseWeight = 1.0 / 32;
/// A model folder that names its start speaks for so many probes of it: bicached profile makes some
/// hundred.
constexpr double kStartProbes = 100;
/// Of what a plan in use brings into the allowance, so much goes into probing it again.
constexpr double kWatchShare = 1.0 / 8;
/// Prefixes remembered: some hundred bytes each.
constexpr size_t kMaxPrefixes = 4096;

auto boldness(const InsidePlan& plan) {
  const int rank = plan.intra_cache == IntraCache::kNone       ? 0
                   : plan.intra_cache == IntraCache::kAdaptive ? 1
                   : plan.intra_cache == IntraCache::kPrefix   ? 2
                                                               : 3;
  return std::tuple(rank, plan.refresh_depth, plan.refresh_commits, plan.refresh_interval);
}

}  // namespace

std::string request_kind(const GenerateRequest& request) {
  const auto rounded = [](int n) {
    return std::to_string(std::bit_ceil(static_cast<unsigned>(std::max(n, 1))));
  };
  return request.decode.algorithm + "/" + rounded(request.decode.block_length) + "/" +
         rounded(request.gen_length);
}

std::vector<InsidePlan> inside_plans(int num_layers, const InsidePlan& start) {
  constexpr int kInterval = 16;  // arXiv 2606.07571
  std::vector<InsidePlan> plans = {{}, start};
  // After each text token, from a layer on below which text changes nothing; at each block's start
  // (the dual cache, arXiv 2505.22618).
  for (const int eighths : {0, 2, 3}) {
    plans.push_back({IntraCache::kAdaptive, kInterval, 1, num_layers * eighths / 8});
  }
  plans.push_back({IntraCache::kDual, kInterval, INT_MAX, 0});
  std::ranges::stable_sort(plans, {}, boldness);
  plans.erase(std::ranges::unique(plans).begin(), plans.end());
  return plans;
}

ReuseLearner::ReuseLearner(Settings settings)
    : settings_(std::move(settings)),
      plans_(inside_plans(settings_.num_layers, settings_.start.plan)),
      start_step_(
          static_cast<int>(std::ranges::find(plans_, settings_.start.plan) - plans_.begin())) {}

// --- How deep is safe --------------------------------------------------------------------------

int ReuseLearner::inside_now(const Kind& kind) const {
  const int safe = std::max(0, kind.inside.outcomes.safe_step(settings_.max_disagreement));
  // What is published of a checkpoint was measured on more questions than probes will ever see.
  return settings_.start.is_published ? std::max(safe, start_step_) : safe;
}

const InsidePlan& ReuseLearner::inside(const std::string& kind) const {
  const auto it = kinds_.find(kind);
  return inside_step(it == kinds_.end() ? start_step_ : inside_now(it->second));
}

int ReuseLearner::depth(const Hash128& prefix, const std::string& kind) const {
  const Ladder* ladder = find({prefix, kind});
  const int step = ladder ? ladder->outcomes.safe_step(settings_.max_disagreement) : -1;
  return step < 0 ? 0 : depth_step(step);
}

// --- When to probe -----------------------------------------------------------------------------

/// Row-layers of such a request under a plan, if it goes as those before it.
double ReuseLearner::work(const Subject& subject, const Course& course, const InsidePlan& plan,
                          int depth) const {
  const double layers = settings_.num_layers, length = subject.length;
  const double prefix = subject.prefix_len;
  const double block = std::min(subject.block_length, subject.length) * layers;
  const double first = length * layers - prefix * depth;
  double num_full = course.forwards, full = first;
  if (plan.intra_cache == IntraCache::kAdaptive) {
    num_full = std::clamp(course.text_forwards, 1.0, course.forwards);
    full = block + (length * layers - block) * (1 - plan.refresh_depth / layers) -
           prefix * std::max(0, depth - plan.refresh_depth);
  } else if (plan.intra_cache != IntraCache::kNone) {
    num_full = std::clamp(course.blocks, 1.0, course.forwards);
  }
  return first + (num_full - 1) * full + (course.forwards - num_full) * block;
}

/// The trial that helps this ladder most.
std::optional<ReuseLearner::Trial> ReuseLearner::consider(const Subject& subject,
                                                          bool is_shared) const {
  const auto kind = kinds_.find(subject.kind);
  if (kind == kinds_.end() || kind->second.course.num == 0) return std::nullopt;
  if (is_shared ? subject.prefix_len == 0 : subject.inside_is_given) return std::nullopt;
  const Course& course = kind->second.course;
  const int inside = inside_now(kind->second);
  const Ladder* ladder = is_shared ? find({subject.prefix, subject.kind}) : &kind->second.inside;
  if (!ladder) return std::nullopt;
  const Outcomes& outcomes = ladder->outcomes;
  const int careful = is_shared ? -1 : 0;
  const int now = is_shared ? outcomes.safe_step(settings_.max_disagreement) : inside;
  const auto work_at = [&](int step) {
    return is_shared ? work(subject, course, inside_step(inside), step < 0 ? 0 : depth_step(step))
                     : work(subject, course, inside_step(step), 0);
  };
  const double proof = Outcomes(1).missing(0, settings_.max_disagreement);
  if (ladder->uses < proof * ladder->patience) return std::nullopt;
  // A request that is probed runs the careful plan itself, beside the one that is tried.
  const double lost = work_at(careful) - work_at(now);
  for (int step = outcomes.num_steps() - 1; step > now; --step) {
    const double gain = work_at(now) - work_at(step);
    if (gain <= 0 || !outcomes.is_open(step)) continue;
    Trial trial{subject, is_shared, step, work_at(step) + lost};
    trial.total_cost = trial.cost * outcomes.missing(step, settings_.max_disagreement);
    trial.score = ladder->uses * gain / trial.total_cost;
    if (trial.score >= 1) return trial;
  }
  Trial watch{subject, is_shared, now, work_at(careful)};
  const double brings = settings_.probe_budget * work_at(now) + kShareOfSaved * lost;
  const bool is_due = ladder->uses_since_probe * brings * kWatchShare >= watch.cost;
  return now > careful && is_due ? std::optional(watch) : std::nullopt;
}

std::optional<ReuseLearner::Trial> ReuseLearner::next_trial(const Subject& subject) {
  if (settings_.surveys) return survey(subject);
  std::optional<Trial> best = consider(subject, true);
  const std::optional<Trial> inside = consider(subject, false);
  if (inside && (!best || inside->score > best->score)) best = inside;
  claim_.score *= 1 - 1 / kClaimRequests;
  claim_.total_cost *= 1 - 1 / kClaimRequests;
  if (!best) return std::nullopt;
  // One proof after the other: what the best one still takes is not spent on others.
  const bool goes_on = claim_.is_shared == best->is_shared &&
                       claim_.subject.kind == best->subject.kind &&
                       (!best->is_shared || claim_.subject.prefix == best->subject.prefix);
  const bool is_first = goes_on || best->score > claim_.score;
  if (is_first) claim_ = *best;
  return allowance_ >= best->cost + (is_first ? 0 : claim_.total_cost) ? best : std::nullopt;
}

/// Every plan as often as the others.
std::optional<ReuseLearner::Trial> ReuseLearner::survey(const Subject& subject) const {
  const auto kind = kinds_.find(subject.kind);
  Trial trial{subject};
  double fewest = INFINITY;
  const auto look = [&](const Outcomes& outcomes, bool is_shared, int first) {
    for (int step = first; step < outcomes.num_steps(); ++step) {
      const Tally& tally = outcomes.at(step);
      if (tally.agreed + tally.differed >= fewest) continue;
      fewest = tally.agreed + tally.differed;
      trial.is_shared = is_shared;
      trial.step = step;
    }
  };
  if (kind == kinds_.end()) return std::nullopt;
  if (subject.prefix_len > 0) look(kind->second.shared, true, 0);
  look(kind->second.inside.outcomes, false, 1);
  return trial;
}

void ReuseLearner::count_use(const Subject& subject) {
  const auto count = [](Ladder& ladder) {
    ++ladder.uses;
    ++ladder.uses_since_probe;
  };
  count(kind_of(subject.kind).inside);
  if (subject.prefix_len > 0) count(ladder_of({subject.prefix, subject.kind}));
}

void ReuseLearner::begin(const Trial& trial) {
  allowance_ -= trial.cost;
  tried_ladder(trial).uses_since_probe = 0;
}

void ReuseLearner::end(const Trial& trial, std::optional<bool> agrees, int64_t spent) {
  allowance_ += trial.cost - static_cast<double>(spent);
  Ladder& ladder = tried_ladder(trial);
  if (!agrees) {
    ladder.patience *= 2;
    ladder.uses = 0;
    return;
  }
  ++version_;
  ladder.patience = 1;
  ladder.outcomes.record(trial.step, *agrees);
  if (!trial.is_shared) return;
  kind_of(trial.subject.kind).shared.record(trial.step, *agrees);
  // Questions about a prefix may have become others.
  if (!*agrees) ladder.outcomes.doubt();
}

void ReuseLearner::finish(const std::string& kind, const GenerationStats& stats, int64_t saved) {
  Course& course = kind_of(kind).course;
  ++course.num;
  const double weight = std::max(1 / course.num, kCourseWeight);
  const auto move = [weight](double& mean, int value) { mean += weight * (value - mean); };
  move(course.forwards, stats.num_forwards);
  move(course.blocks, stats.num_blocks);
  move(course.text_forwards, stats.num_text_forwards);
  allowance_ *= 1 - 1 / kAllowanceRequests;
  allowance_ += settings_.probe_budget * static_cast<double>(stats.row_layers) +
                kShareOfSaved * static_cast<double>(saved);
}

// --- Records -----------------------------------------------------------------------------------

ReuseLearner::Kind& ReuseLearner::kind_of(const std::string& name) {
  const auto [it, is_new] = kinds_.try_emplace(name, plans_.size(), settings_.depths.size());
  if (is_new && start_step_ > 0) {
    it->second.inside.outcomes.assume(start_step_, kStartProbes);
  }
  return it->second;
}

ReuseLearner::Ladder& ReuseLearner::tried_ladder(const Trial& trial) {
  return trial.is_shared ? ladder_of({trial.subject.prefix, trial.subject.kind})
                         : kind_of(trial.subject.kind).inside;
}

const ReuseLearner::Ladder* ReuseLearner::find(const Key& key) const {
  const auto it = by_key_.find(key);
  return it == by_key_.end() ? nullptr : &it->second->ladder;
}

ReuseLearner::Ladder& ReuseLearner::ladder_of(const Key& key) {
  if (const auto it = by_key_.find(key); it != by_key_.end()) {
    prefixes_.splice(prefixes_.begin(), prefixes_, it->second);
    return it->second->ladder;
  }
  prefixes_.push_front({key, Ladder(settings_.depths.size())});
  by_key_[key] = prefixes_.begin();
  if (prefixes_.size() > kMaxPrefixes) {
    by_key_.erase(prefixes_.back().key);
    prefixes_.pop_back();
  }
  return prefixes_.front().ladder;
}

}  // namespace bicached
