#include "cache_index/reuse_learner.h"

#include <algorithm>
#include <bit>
#include <tuple>

#include "config/reuse_start.h"

namespace bicached {
namespace {

/// Of what reuse saved, so much may go into probes: the rest stays with whoever waits for answers.
constexpr double kShareOfSaved = 1.0 / 3;
/// Requests over which unused allowance fades.
constexpr double kAllowanceRequests = 1024;
/// Requests that tell what one of the kind costs now, and over which the claim of a prefix fades
/// that is not seen again.
constexpr double kRecentRequests = 128;
/// A model's start counts as so many probes of it that agreed: bicached-lab profile makes some
/// hundred.
constexpr double kStartProbes = 100;
/// Of what a plan in use brings into the allowance, so much goes into probing it again, since a
/// question in twenty that goes wrong passes 24 probes three times in ten. The rest is for others.
constexpr double kWatchShare = 1.0 / 8;
/// A proof has to save so many times its cost, if its prefix is used again as often as it was: half
/// of all prefixes are not.
constexpr double kPayback = 2;
/// Prefixes remembered: some hundred bytes each.
constexpr size_t kMaxRecords = 4096;

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
  return request.decode.algorithm + (request.decode.cfg_scale != 0 ? "/guided/" : "/") +
         rounded(request.decode.block_length) + "/" + rounded(request.gen_length);
}

std::vector<InsidePlan> inside_plans(int num_layers, const InsidePlan& start) {
  // After each text token, from a layer on below which text changes nothing; at each block's start.
  std::vector<InsidePlan> plans = {default_plan(IntraCache::kNone), start,
                                   default_plan(IntraCache::kDual)};
  for (const int eighths : {0, 2, 3}) {
    plans.push_back(default_plan(IntraCache::kAdaptive));
    plans.back().refresh_depth = num_layers * eighths / 8;
  }
  std::ranges::stable_sort(plans, {}, boldness);
  plans.erase(std::ranges::unique(plans).begin(), plans.end());
  return plans;
}

ReuseLearner::ReuseLearner(const CacheSettings& settings, int num_layers, std::vector<int> depths)
    : settings_(settings),
      num_layers_(num_layers),
      depths_(std::move(depths)),
      plans_(inside_plans(num_layers, settings.start.plan)),
      start_step_(
          static_cast<int>(std::ranges::find(plans_, settings.start.plan) - plans_.begin())),
      records_(kMaxRecords, {{}, Ladder(plans_.size()), Ladder(depths_.size())}) {}

// --- How deep is safe --------------------------------------------------------------------------

/// The start, or what all requests of the kind have left of it.
int ReuseLearner::start_now(const std::string& kind) const {
  const Record* all = records_.find({kEveryPrefix, kind});
  // What is published of a checkpoint was measured on more questions than probes will ever see.
  if (!all || settings_.start.is_published) return start_step_;
  return std::clamp(all->inside.outcomes.safe_step(settings_.max_disagreement), 0, start_step_);
}

int ReuseLearner::inside_now(const Key& key) const {
  const Record* own = records_.find(key);
  const int proven = own ? own->inside.outcomes.safe_step(settings_.max_disagreement) : 0;
  return std::max(proven, start_now(key.second));
}

const InsidePlan& ReuseLearner::inside(const Hash128& prefix, const std::string& kind) const {
  return inside_step(inside_now({prefix, kind}));
}

int ReuseLearner::shared_now(const Key& key) const {
  const Record* own = records_.find(key);
  return own ? own->shared.outcomes.safe_step(settings_.max_disagreement) : -1;
}

int ReuseLearner::depth(const Hash128& prefix, const std::string& kind) const {
  const int step = shared_now({prefix, kind});
  return step < 0 ? 0 : depth_step(step);
}

// --- When to probe -----------------------------------------------------------------------------

/// Row-layers of such a request under a plan, if it goes as those before it.
double ReuseLearner::work(const Subject& subject, const Course& course, const InsidePlan& plan,
                          int depth) const {
  const double layers = num_layers_, length = subject.length;
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

double ReuseLearner::work(const Subject& subject, const Course& course, const Steps& steps) const {
  const int depth = steps.shared < 0 ? 0 : depth_step(steps.shared);
  const InsidePlan& plan = subject.inside_is_given ? subject.inside : inside_step(steps.inside);
  return work(subject, course, plan, depth);
}

/// Null where that part is not learned, or no such request has been seen to its end.
const ReuseLearner::Record* ReuseLearner::find_learned(const Subject& subject,
                                                       bool is_shared) const {
  const Record* own = records_.find({subject.prefix, subject.kind});
  const bool is_learned = is_shared ? subject.prefix_len > 0 : !subject.inside_is_given;
  return is_learned && own && own->course.num > 0 ? own : nullptr;
}

ReuseLearner::Steps ReuseLearner::in_use(const Subject& subject) const {
  const Key key{subject.prefix, subject.kind};
  return {inside_now(key), shared_now(key)};
}

/// Whether a proof would not be the most of what happens to it.
bool ReuseLearner::is_used_enough(const Ladder& ladder) const {
  return ladder.uses >= Outcomes(1).missing(0, settings_.max_disagreement) * ladder.patience;
}

/// Of the step in use, if it is time.
std::optional<ReuseLearner::Trial> ReuseLearner::find_watch(const Subject& subject,
                                                            bool is_shared) const {
  const Record* own = find_learned(subject, is_shared);
  if (!own) return std::nullopt;
  const Steps now = in_use(subject);
  const Steps careful = now.with(is_shared, is_shared ? -1 : 0);
  const Steps start = now.with(is_shared, is_shared ? -1 : start_now(subject.kind));
  // A start is watched over all prefixes, what a prefix has proven by its own uses. Of a published
  // one nothing would follow.
  const bool is_start = now == start;
  const Record* watched = is_start ? records_.find({kEveryPrefix, subject.kind}) : own;
  if (now == careful || !watched || (is_start && settings_.start.is_published)) return std::nullopt;
  // The request itself runs the careful plan, and its shadow what it would have run.
  const double cost = work(subject, own->course, careful);
  const double usual = work(subject, own->course, now);
  const bool is_counted = is_shared || subject.counts_steps;
  const double saved = is_counted ? work(subject, own->course, start) - usual : 0;
  const double brings = settings_.probe_budget * usual + kShareOfSaved * std::max(0.0, saved);
  if (watched->of(is_shared).uses_since_watch * brings * kWatchShare < cost) return std::nullopt;
  return Trial{.subject = subject, .is_shared = is_shared, .step = now.of(is_shared), .cost = cost};
}

/// Of the boldest step that pays.
std::optional<ReuseLearner::Trial> ReuseLearner::find_proof(const Subject& subject,
                                                            bool is_shared) const {
  const Record* own = find_learned(subject, is_shared);
  if (!own || !is_used_enough(own->of(is_shared))) return std::nullopt;
  const Ladder& ladder = own->of(is_shared);
  const Steps now = in_use(subject);
  const double usual = work(subject, own->course, now);
  for (int step = ladder.outcomes.num_steps() - 1; step > now.of(is_shared); --step) {
    Trial trial{.subject = subject, .is_shared = is_shared, .is_proof = true, .step = step};
    trial.cost = work(subject, own->course, now.with(is_shared, step));
    if (trial.cost >= usual || !ladder.outcomes.is_open(step)) continue;
    if (is_shared && subject.stored_depth < depth_step(step)) {
      trial.entry_cost = static_cast<double>(subject.prefix_len) * depth_step(step);
    }
    const double num_missing = ladder.outcomes.missing(step, settings_.max_disagreement);
    trial.total_cost = trial.entry_cost + trial.cost * num_missing;
    trial.score = ladder.uses * (usual - trial.cost) / trial.total_cost;
    if (trial.score >= kPayback) return trial;
  }
  return std::nullopt;
}

std::optional<ReuseLearner::Trial> ReuseLearner::next_trial(const Subject& subject) {
  if (settings_.surveys) return survey(subject);
  for (const bool is_shared : {true, false}) {
    const std::optional<Trial> watch = find_watch(subject, is_shared);
    if (watch && allowance_ >= watch->cost) return watch;
    if (watch) owed_ = std::max(owed_, watch->cost);
  }
  std::optional<Trial> best = find_proof(subject, true);
  const std::optional<Trial> inside = find_proof(subject, false);
  if (inside && (!best || inside->score > best->score)) best = inside;
  // One proof after the other: what the best one still takes is not spent on others.
  const bool is_claimed =
      claim_.subject.kind == subject.kind && claim_.subject.prefix == subject.prefix;
  const bool goes_on = best && is_claimed && claim_.is_shared == best->is_shared;
  if (is_claimed && !goes_on) claim_ = {};  // it has ended
  if (!best) return std::nullopt;
  const bool is_first = goes_on || best->score > claim_.score;
  if (is_first) claim_ = *best;
  const double needed = owed_ + best->entry_cost + best->cost + (is_first ? 0 : claim_.total_cost);
  return allowance_ >= needed ? best : std::nullopt;
}

/// Every plan in turn.
ReuseLearner::Trial ReuseLearner::survey(const Subject& subject) {
  const size_t num_inside = plans_.size() - 1;
  const size_t num_shared = subject.prefix_len > 0 ? depths_.size() : 0;
  const size_t turn = num_surveyed_ % (num_inside + num_shared);
  const bool is_shared = turn >= num_inside;
  const size_t step = is_shared ? turn - num_inside : turn + 1;
  return {.subject = subject, .is_shared = is_shared, .step = static_cast<int>(step)};
}

// --- What happens ------------------------------------------------------------------------------

ReuseLearner::Record& ReuseLearner::touch(const Key& key) {
  Record& record = records_.touch(key);
  if (key.first == kEveryPrefix) record.inside.outcomes.assume(start_step_, kStartProbes);
  return record;
}

std::array<ReuseLearner::Record*, 2> ReuseLearner::records_of(const Subject& subject) {
  return {&touch({kEveryPrefix, subject.kind}), &touch({subject.prefix, subject.kind})};
}

void ReuseLearner::count_use(const Subject& subject) {
  for (double* fading : {&owed_, &claim_.score, &claim_.total_cost}) {
    *fading *= 1 - 1 / kRecentRequests;
  }
  for (Record* record : records_of(subject)) {
    for (Ladder* ladder : {&record->inside, &record->shared}) {
      ++ladder->uses;
      ++ladder->uses_since_watch;
    }
  }
}

void ReuseLearner::begin(const Trial& trial) {
  allowance_ -= trial.cost;
  ++num_surveyed_;
  if (trial.is_proof) return;
  owed_ = 0;
  for (Record* record : records_of(trial.subject)) record->of(trial.is_shared).uses_since_watch = 0;
}

void ReuseLearner::drop(const Trial& trial, int64_t spent) {
  allowance_ += trial.cost - static_cast<double>(spent);
}

void ReuseLearner::end(const Trial& trial, std::optional<bool> agrees, int64_t spent) {
  drop(trial, spent);
  const auto records = records_of(trial.subject);
  Ladder& own = records.back()->of(trial.is_shared);
  if (!agrees) {
    if (!trial.is_proof) return;
    own.patience *= 2;
    own.uses = 0;
    return;
  }
  own.patience = 1;
  own.outcomes.record(trial.step, *agrees);
  // That a bolder step agrees with the one in use says nothing of a start.
  if (!trial.is_proof) records.front()->of(trial.is_shared).outcomes.record(trial.step, *agrees);
  // Questions about a prefix may have become others, and of many steps that are tried one passes
  // by chance.
  if (!*agrees) own.outcomes.doubt();
}

void ReuseLearner::finish(const Subject& subject, const GenerationStats& stats,
                          const InsidePlan& inside, int depth, int64_t saved) {
  ++version_;
  const Course now{1, static_cast<double>(stats.num_forwards),
                   static_cast<double>(stats.num_blocks),
                   static_cast<double>(stats.num_text_forwards)};
  for (Record* record : records_of(subject)) {
    Course& course = record->course;
    const double weight = std::max(1 / ++course.num, 1 / kRecentRequests);
    course.forwards += weight * (now.forwards - course.forwards);
    course.blocks += weight * (now.blocks - course.blocks);
    course.text_forwards += weight * (now.text_forwards - course.text_forwards);
  }
  double saved_inside = 0;
  if (subject.counts_steps && !subject.inside_is_given) {
    const InsidePlan& start = inside_step(start_now(subject.kind));
    saved_inside = work(subject, now, start, depth) - work(subject, now, inside, depth);
  }
  allowance_ -= std::max(0.0, allowance_ - owed_) / kAllowanceRequests;
  allowance_ += settings_.probe_budget * static_cast<double>(stats.row_layers) +
                kShareOfSaved * (static_cast<double>(saved) + std::max(0.0, saved_inside));
}

void ReuseLearner::forget() {
  records_.clear();
  allowance_ = 0;
  owed_ = 0;
  claim_ = {};
}

}  // namespace bicached
