#include "engine/prefix_cache.h"

#include <algorithm>
#include <climits>

#include "bicached/error.h"
#include "bicached/unmasker.h"
#include "config/reuse_start.h"

namespace bicached {
namespace {

/// Beginnings of recent prompts that are counted: some MB, hundreds of long prompts.
constexpr size_t kMaxCounted = size_t{1} << 16;
/// Where nobody says which beginnings may be shared, every so many tokens one is looked at.
constexpr int kChunk = 16;
/// A longer prefix than the stored one gets an entry of its own only from this factor on, so that a
/// conversation that grows turn by turn makes few.
constexpr int kGrowthNumerator = 5, kGrowthDenominator = 4;

/// As the canvas begins: most don't grow.
int total_len(const GenerateRequest& request) {
  return static_cast<int>(request.prompt_ids.size() + request.suffix_ids.size()) +
         request.gen_length;
}

std::span<const TokenId> prefix_of(const GenerateRequest& request, int length) {
  return std::span<const TokenId>(request.prompt_ids).first(static_cast<size_t>(length));
}

std::optional<DepthTable> load_table(const CacheSettings& settings, int num_layers) {
  if (settings.depth_table.empty()) return std::nullopt;
  return name_errors("depth_table",
                     [&] { return DepthTable::load(settings.depth_table, num_layers); });
}

void check_layers(const char* name, int layers, int num_layers, ErrorCode code) {
  if (layers <= num_layers) return;
  throw Error(code,
              std::string(name) + " is " + std::to_string(layers) + "; the model has " +
                  std::to_string(num_layers) + " layers",
              name);
}

void check_depths(const CacheSettings& settings, int num_layers) {
  const auto code = ErrorCode::kInvalidSettings;
  check_layers("cache_depth", settings.depth, num_layers, code);
  check_layers("refresh_depth", settings.refresh_depth, num_layers, code);
}

/// Depths at which an entry can be entered: what the server's policy can choose, and what else is
/// wanted. Every one costs a hidden state a token.
std::vector<int> entry_depths(const DepthPolicy& policy, const CacheSettings& settings,
                              const DepthTable* table, int num_layers) {
  std::vector<int> depths = policy.depths(num_layers, settings.depth, table);
  depths.insert(depths.end(), settings.more_depths.begin(), settings.more_depths.end());
  std::erase_if(depths, [&](int depth) { return depth < 1 || depth > num_layers; });
  std::ranges::sort(depths);
  depths.erase(std::ranges::unique(depths).begin(), depths.end());
  return depths;
}

/// Of these, what the policy that learns would choose.
std::vector<int> learned_depths(const std::vector<int>& depths, int num_layers) {
  std::vector<int> learned;
  for (const DepthPolicy& policy : depth_policy_table()) {
    if (policy.learns) learned = policy.depths(num_layers, 0, nullptr);
  }
  std::erase_if(learned, [&](int depth) { return !std::ranges::binary_search(depths, depth); });
  return learned;
}

}  // namespace

void check_cache_settings(const CacheSettings& settings, int num_layers) {
  check_depths(settings, num_layers);
  const bool has_table = load_table(settings, num_layers).has_value();
  name_errors("cache_policy", [&] { find_depth_policy(settings.policy, has_table); });
}

PrefixCache::PrefixCache(Denoiser& denoiser, const CacheSettings& settings)
    : denoiser_(denoiser),
      settings_(settings),
      info_(denoiser.info()),
      table_(load_table(settings, info_.num_layers)),
      policy_(find_policy(settings.deterministic ? "off" : settings.policy)),
      uses_(kMaxCounted),
      entries_(denoiser, settings.budget_bytes(),
               entry_depths(policy_, settings, table_ ? &*table_ : nullptr, info_.num_layers),
               stats_),
      learner_(settings_, info_.num_layers, learned_depths(entries_.depths(), info_.num_layers)),
      outcomes_file_(settings_, info_.fingerprint, learner_) {
  check_depths(settings_, info_.num_layers);
}

/// Where reuse is exact there is nothing to learn or to choose: all policies that reuse are `full`.
const DepthPolicy& PrefixCache::find_policy(const std::string& name) const {
  const DepthPolicy& policy = find_depth_policy(name, table_.has_value());
  return is_exact() && policy.reuses ? find_depth_policy("full", false) : policy;
}

void PrefixCache::check(const GenerateRequest& request) const {
  const CacheParams& asked = request.cache;
  if (!asked.policy.empty()) find_policy(asked.policy);
  const auto code = ErrorCode::kInvalidRequest;
  check_layers("cache.depth", asked.depth.value_or(0), info_.num_layers, code);
  check_layers("cache.refresh_depth", asked.refresh_depth.value_or(0), info_.num_layers, code);
}

// --- Which prefix ------------------------------------------------------------------------------

void PrefixCache::arrive(const GenerateRequest& request, CacheUse& use) {
  const std::string& asked = request.cache.policy;
  use.policy = is_deterministic(request) ? &find_policy("off")
               : asked.empty()           ? &policy_
                                         : &find_policy(asked);
  use.subject.kind = request_kind(request);
  if (!use.policy->reuses) return;
  find_candidates(request, use);
  if (!use.policy->learns) return;
  const auto unmasker = make_unmasker(request.decode);
  use.subject.length = total_len(request);
  use.subject.block_length = request.decode.block_length;
  use.subject.counts_steps = unmasker->counts_steps();
  use.subject.has_quota = unmasker->has_quota();
  use.subject.inside_is_given = inside_is_given(request);
  describe(request, choose_prefix(request, use), use);
  learner_.count_use(use.subject);
}

bool PrefixCache::is_deterministic(const GenerateRequest& request) const {
  return request.cache.deterministic || settings_.deterministic;
}

/// Beginnings that others may share: what the client says, the ends of messages, or for a raw
/// prompt the points at which recent prompts part from it.
void PrefixCache::find_candidates(const GenerateRequest& request, CacheUse& use) {
  // The row that serves the first masked position must not be one of the prefix.
  const int longest = static_cast<int>(request.prompt_ids.size()) - info_.logits_shift;
  std::vector<int> lengths = request.prefix_boundaries;
  const bool is_raw = lengths.empty() && !request.cache.prefix_len;
  if (request.cache.prefix_len) lengths = {*request.cache.prefix_len};
  for (int length = kChunk; is_raw && length <= longest; length += kChunk) {
    lengths.push_back(length);
  }
  for (int& length : lengths) length = entries_.whole_blocks(length);
  lengths.erase(std::ranges::unique(lengths).begin(), lengths.end());
  std::erase_if(lengths, [&](int length) {
    return length > longest || length < std::max(settings_.min_prefix_len, 1);
  });
  const auto keys = entries_.store().keys_of(request.cache.salt, request.prompt_ids, lengths);
  // The longest first, so that a beginning is never forgotten before what goes on from it.
  int uses_beyond = 0;
  for (size_t i = lengths.size(); i-- > 0;) {
    const int uses = ++uses_.touch(keys[i]);
    if (is_raw && uses == std::max(uses_beyond, 1)) continue;  // nobody parts here
    use.candidates.push_back({lengths[i], uses, keys[i]});
    uses_beyond = uses;
  }
  std::ranges::reverse(use.candidates);
}

StoredPrefix* PrefixCache::stored(const GenerateRequest& request,
                                  const CacheUse::Candidate& candidate) {
  return entries_.find(request.cache.salt, prefix_of(request, candidate.length), candidate.key);
}

bool PrefixCache::is_hot(const GenerateRequest& request, const CacheUse& use) {
  return std::ranges::any_of(use.candidates, [&](const CacheUse::Candidate& candidate) {
    const StoredPrefix* found = stored(request, candidate);
    return found && found->num_users > 0;
  });
}

/// Of those that are stored, or worth it: the one that saves most, or else the one to learn about,
/// which most was shared of. Null: none.
const CacheUse::Candidate* PrefixCache::choose_prefix(const GenerateRequest& request,
                                                      const CacheUse& use) {
  int64_t stored_len = 0;
  for (const CacheUse::Candidate& candidate : use.candidates) {
    if (stored(request, candidate)) stored_len = candidate.length;
  }
  const CacheUse::Candidate* best = nullptr;
  std::pair<int64_t, int64_t> most{0, 0};
  for (const CacheUse::Candidate& candidate : use.candidates) {
    const int64_t length = candidate.length;
    const bool grows = length * kGrowthDenominator >= stored_len * kGrowthNumerator;
    const bool is_worth_it = candidate.uses >= settings_.min_uses && grows;
    if (!is_worth_it && !stored(request, candidate)) continue;
    const std::pair value(length * choose_depth(request, use, candidate), length * candidate.uses);
    if (value > most) best = &candidate;
    most = std::max(most, value);
  }
  return best;
}

/// The prefix, as the learner looks at it.
void PrefixCache::describe(const GenerateRequest& request, const CacheUse::Candidate* prefix,
                           CacheUse& use) {
  ReuseLearner::Subject& subject = use.subject;
  const StoredPrefix* entry = prefix ? stored(request, *prefix) : nullptr;
  subject.prefix = prefix ? prefix->key : Hash128{};
  subject.prefix_len = prefix ? prefix->length : 0;
  subject.stored_depth = entry ? entry->spec.max_depth : 0;
}

// --- How it is reused --------------------------------------------------------------------------

/// What the policy says, down to a depth that entries keep.
int PrefixCache::choose_depth(const GenerateRequest& request, const CacheUse& use,
                              const CacheUse::Candidate& prefix) const {
  PrefixUse about{prefix.length, total_len(request), info_.num_layers};
  if (use.policy->learns) about.proven_depth = learner_.depth(prefix.key, use.subject.kind);
  about.fixed_depth = request.cache.depth.value_or(settings_.depth);
  about.table = table_ ? &*table_ : nullptr;
  const std::vector<int>& depths = entries_.depths();
  const auto above = std::ranges::upper_bound(depths, use.policy->choose(about));
  return above == depths.begin() ? 0 : *std::prev(above);
}

/// Whether client or operator named a part of the plan inside a request, which then nobody learns.
bool PrefixCache::inside_is_given(const GenerateRequest& request) const {
  const CacheParams& cache = request.cache;
  return request.decode.intra_cache || cache.refresh_interval || cache.refresh_commits ||
         cache.refresh_depth || settings_.refresh_interval != kPlansOwn ||
         settings_.refresh_commits != kPlansOwn || settings_.refresh_depth != kPlansOwn;
}

InsidePlan PrefixCache::choose_inside(const GenerateRequest& request, const CacheUse& use) const {
  if (is_deterministic(request) || is_exact()) return {};
  InsidePlan plan;
  if (use.policy->learns) {
    plan = learner_.inside(use.subject.prefix, use.subject.kind);
  } else if (use.policy->reuses) {
    plan = settings_.start.plan;
  }
  const auto intra = request.decode.intra_cache;
  if (intra && *intra != plan.intra_cache) plan = default_plan(*intra);
  const auto given = [](std::optional<int> of_request, int of_server, int of_plan) {
    return of_request.value_or(of_server == kPlansOwn ? of_plan : of_server);
  };
  const CacheParams& cache = request.cache;
  plan.refresh_interval =
      std::max(1, given(cache.refresh_interval, settings_.refresh_interval, plan.refresh_interval));
  plan.refresh_commits =
      given(cache.refresh_commits, settings_.refresh_commits, plan.refresh_commits);
  if (plan.refresh_commits == 0) plan.refresh_commits = INT_MAX;
  plan.refresh_depth = std::min(
      given(cache.refresh_depth, settings_.refresh_depth, plan.refresh_depth), info_.num_layers);
  return plan;
}

Readiness PrefixCache::prepare(const GenerateRequest& request, CacheUse& use) {
  use.entry = nullptr;
  use.trial.reset();
  for (CacheUse::Candidate& candidate : use.candidates) {
    // Others may have come meanwhile.
    if (const int* uses = uses_.find(candidate.key)) candidate.uses = *uses;
  }
  const CacheUse::Candidate* prefix = choose_prefix(request, use);
  describe(request, prefix, use);
  use.subject.inside = choose_inside(request, use);
  use.reuse = {use.subject.inside};
  // A probe of a guided request would need a guide as well.
  if (use.policy->learns && !is_guided(request)) use.trial = learner_.next_trial(use.subject);
  // Also where nothing is shared yet, the beginning may be reused from one forward to the next.
  if (!use.candidates.empty()) use.reuse.prefix_len = use.candidates.back().length;
  if (!prefix) return Readiness::kReady;

  use.reuse.prefix_len = prefix->length;
  const int wanted = choose_depth(request, use, *prefix);
  const bool tries_deeper = use.trial && use.trial->is_shared;
  const int deepest = std::max(wanted, tries_deeper ? learner_.depth_step(use.trial->step) : 0);
  if (deepest == 0) return Readiness::kReady;
  StoredPrefix* entry = stored(request, *prefix);
  if (deepest > (entry ? entry->spec.max_depth : 0)) {
    const auto ids = prefix_of(request, prefix->length);
    const bool begun = entries_.begin_making(request.cache.salt, ids, prefix->key, deepest);
    if (begun && wanted < deepest) learner_.spend(int64_t{prefix->length} * deepest);
    entry = stored(request, *prefix);  // others may have gone to make room
  }
  if (!entry) {
    use.trial.reset();
    return Readiness::kReady;
  }
  const int depth = std::min(wanted, entry->spec.max_depth);
  if (!entry->ready) {
    use.trial.reset();
    return depth > 0 ? Readiness::kWaitsForEntry : Readiness::kReady;
  }
  if (tries_deeper && deepest > entry->spec.max_depth) use.trial.reset();
  if (depth > 0 || use.trial) use.entry = entry;
  use.reuse.depth = depth;
  return Readiness::kReady;
}

void PrefixCache::take_up(const GenerateRequest& request, CacheUse& use, SlabId slab) {
  if (use.policy->reuses) {
    if (use.entry) use.held = entries_.hold(*use.entry);
    if (use.trial && !start_probe(request, use)) use.trial.reset();
    if (use.reuse.depth > 0 && !entries_.load(*use.entry, slab, use.reuse.depth)) {
      if (use.shadow) end_probe(use, {}, false);  // its shadow has loaded it
      use.held.reset();
      use.entry = nullptr;
      use.reuse.depth = 0;
    }
    ++(use.reuse.depth > 0 ? stats_.hits : stats_.misses);
    if (use.reuse.depth > 0) {
      ++use.entry->hits;
      stats_.cached_tokens += use.reuse.prefix_len;
    }
  }
  // Of its own forwards a request may reuse something under any policy, if it says so.
  if (use.reuse.own_states(request.longest_canvas(), info_.num_layers) > 0) {
    use.own = entries_.own_states(use.reuse, request.longest_canvas());
    if (!use.own && drop_probe(use)) {
      use.own = entries_.own_states(use.reuse, request.longest_canvas());
    }
    if (!use.own) use.reuse.refresh_depth = 0;
  }
}

void PrefixCache::finish(CacheUse& use, const GenerationStats& stats, bool is_complete) {
  if (!use.policy || !use.policy->reuses) return;
  const int64_t saved = use.held ? use.reuse.saved_row_layers(stats.num_refreshes) : 0;
  if (use.held) entries_.count_saved(*use.entry, saved);
  stats_.saved_row_layers += saved;
  if (use.shadow) end_probe(use, stats, is_complete);
  if (use.policy->learns && is_complete) {
    learner_.finish(use.subject, stats, use.reuse, use.reuse.depth, saved);
  }
}

// --- What operators do with it, and see --------------------------------------------------------

int PrefixCache::clear(bool forget_probes) {
  if (forget_probes) outcomes_file_.forget();
  uses_.clear();
  return entries_.clear();
}

CacheReport PrefixCache::report(int max_entries) const {
  CacheReport report;
  report.policy = policy_.name;
  report.start = settings_.start.reason;
  report.budget_bytes = entries_.store().budget_bytes();
  report.bytes = entries_.store().bytes();
  report.num_entries = static_cast<int64_t>(entries_.store().num_entries());
  report.hits = stats_.hits;
  report.misses = stats_.misses;
  report.made = stats_.made;
  report.evictions = stats_.evictions;
  report.refused = entries_.num_refused();
  report.probes = stats_.probes;
  report.probes_running = probes_running_;
  std::map<Hash128, std::vector<PlanReport>> probes{{ReuseLearner::kEveryPrefix, {}}};
  const auto listed = entries_.store().most_worth(static_cast<size_t>(max_entries));
  for (const StoredPrefix* stored : listed) probes[stored->key] = {};
  learner_.report(probes);
  for (const StoredPrefix* stored : listed) {
    report.entries.push_back(entries_.describe(*stored));
    report.entries.back().probes = probes[stored->key];
  }
  report.model_probes = probes[ReuseLearner::kEveryPrefix];
  return report;
}

}  // namespace bicached
