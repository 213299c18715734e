#include "engine/prefix_cache.h"

#include <algorithm>
#include <climits>

#include "bicached/error.h"
#include "engine/prefix_cache_parts.h"

namespace bicached {
namespace {

/// Recent prompts remembered: a few MB, hundreds of long conversations.
constexpr size_t kTreeTokens = size_t{1} << 20;
/// A longer prefix than the stored one gets an entry of its own only from this factor on, so that a
/// conversation that grows turn by turn makes few.
constexpr int kGrowthNumerator = 5, kGrowthDenominator = 4;
/// So many probes spare hopeless tests for each that spares nothing.
constexpr int kSparingProbes = 7;
/// Models of at most so many layers can be entered before every one of them.
constexpr int kAllDepths = 16;

int total_len(const GenerateRequest& request) {
  return static_cast<int>(request.prompt_ids.size() + request.suffix_ids.size()) +
         request.gen_length;
}

DepthPolicyParams policy_params(const GenerateRequest& request, const CacheSettings& settings,
                                const std::optional<DepthTable>& table) {
  return {request.cache.depth.value_or(settings.depth), table ? &*table : nullptr,
          settings.max_disagreement};
}

}  // namespace

std::vector<int> entry_depths(const CacheSettings& settings, const DepthTable* table,
                              int num_layers) {
  std::vector<int> depths = settings.more_depths;
  if (settings.policy == "fixed") {
    depths.push_back(settings.depth);
  } else if (settings.policy == "table" && table) {
    for (const DepthTable::Step& step : table->steps) depths.push_back(step.depth);
  } else {
    // Every one costs a hidden state a token: all of a shallow model, else eight, evenly spread.
    const int spread = num_layers <= kAllDepths ? 1 : (num_layers + 7) / 8;
    const int step = settings.policy == "full" ? num_layers : spread;
    for (int depth = num_layers; depth > 0; depth -= step) depths.push_back(depth);
  }
  std::erase_if(depths, [&](int depth) { return depth < 1 || depth > num_layers; });
  std::ranges::sort(depths);
  depths.erase(std::ranges::unique(depths).begin(), depths.end());
  return depths;
}

PrefixCache::PrefixCache(Denoiser& denoiser, const CacheSettings& settings, EngineStats& stats)
    : denoiser_(denoiser),
      settings_(settings),
      stats_(stats),
      info_(denoiser.info()),
      tree_(kTreeTokens),
      store_(settings.cache_bytes, info_.fingerprint),
      probe_stats_({}) {
  if (!settings_.depth_table.empty()) {
    table_ = DepthTable::load(settings_.depth_table);
    if (table_->num_layers != info_.num_layers) {
      throw Error(ErrorCode::kInvalidSettings,
                  settings_.depth_table + ": the table is for a model of " +
                      std::to_string(table_->num_layers) + " layers; this one has " +
                      std::to_string(info_.num_layers),
                  "depth_table");
    }
  }
  if (settings_.policy == "table" && !table_) {
    throw Error(ErrorCode::kInvalidSettings,
                "cache_policy is table, which needs a file in depth_table", "depth_table");
  }
  if (settings_.policy == "fixed" && settings_.depth > info_.num_layers) {
    throw Error(ErrorCode::kInvalidSettings,
                "cache_depth is " + std::to_string(settings_.depth) + "; the model has " +
                    std::to_string(info_.num_layers) + " layers",
                "cache_depth");
  }
  depths_ = entry_depths(settings_, table_ ? &*table_ : nullptr, info_.num_layers);
  if (!depths_.empty()) {
    spec_.max_depth = depths_.back();
    spec_.boundaries = depths_;
    if (spec_.boundaries.back() == info_.num_layers) spec_.boundaries.pop_back();
  }
  probe_stats_ = ProbeStats(
      {depths_, settings_.max_disagreement, settings_.probe_first, settings_.probe_rate});
  load_state();
}

PrefixCache::~PrefixCache() = default;

void PrefixCache::check(const GenerateRequest& request) const {
  if (request.cache.policy.empty()) return;
  make_depth_policy(request.cache.policy, policy_params(request, settings_, table_));
}

// --- A request's way ---------------------------------------------------------------------------

CacheUse PrefixCache::arrive(const GenerateRequest& request) {
  CacheUse use;
  use.policy = request.cache.policy.empty() ? settings_.policy : request.cache.policy;
  if (use.policy == "off") return use;
  use.candidates = candidates(request, tree_.add(request.cache.salt, request.prompt_ids));
  return use;
}

bool PrefixCache::is_hot(const GenerateRequest& request, const CacheUse& use) {
  const StoredPrefix* stored = longest_stored(request, use);
  return stored && stored->num_users > 0;
}

/// Lengths that others may share, ascending: what the client says, the ends of messages, or for a
/// raw prompt the points at which recent prompts part from it.
std::vector<int> PrefixCache::candidates(const GenerateRequest& request,
                                         std::span<const PathStep> path) const {
  std::vector<int> lengths = request.prefix_boundaries;
  if (request.cache.prefix_len) {
    lengths = {*request.cache.prefix_len};
  } else if (lengths.empty()) {
    for (const PathStep& step : path) {
      if (step.uses > 1) lengths.push_back(step.length);
    }
  }
  // The row that serves the first masked position must not be one of the prefix.
  const int longest = static_cast<int>(request.prompt_ids.size()) - info_.logits_shift;
  std::erase_if(lengths,
                [&](int length) { return length > longest || length < settings_.min_prefix_len; });
  return lengths;
}

StoredPrefix* PrefixCache::longest_stored(const GenerateRequest& request, const CacheUse& use) {
  const std::span<const TokenId> ids(request.prompt_ids);
  for (auto length = use.candidates.rbegin(); length != use.candidates.rend(); ++length) {
    StoredPrefix* found = store_.find(request.cache.salt, ids.first(static_cast<size_t>(*length)));
    if (found) return found;
  }
  return nullptr;
}

/// The candidate that deserves an entry, by the tokens that recent prompts could have shared; 0:
/// none.
int PrefixCache::worth_making(const CacheUse& use, std::span<const PathStep> path,
                              int stored) const {
  int best = 0;
  int64_t most = 0;
  for (const int length : use.candidates) {
    const int uses = uses_at(path, length);
    const bool grows = int64_t{length} * kGrowthDenominator >= int64_t{stored} * kGrowthNumerator;
    const int64_t shared = int64_t{length} * uses;
    if (uses < settings_.min_uses || !grows || shared <= most) continue;
    best = length;
    most = shared;
  }
  return best;
}

/// What the policy says, down to a depth that entries keep.
int PrefixCache::choose_depth(const GenerateRequest& request, const CacheUse& use) const {
  const auto policy = make_depth_policy(use.policy, policy_params(request, settings_, table_));
  const int wanted = policy->choose({use.reuse.prefix_len, total_len(request), info_.num_layers,
                                     depths_, probe_stats_.depths(use.line, use.kind)});
  const auto above = std::ranges::upper_bound(depths_, wanted);
  return above == depths_.begin() ? 0 : *std::prev(above);
}

void PrefixCache::choose_refresh(const GenerateRequest& request, CacheUse& use) const {
  const int unlimited = INT_MAX;
  int commits = settings_.refresh_commits < 1 ? unlimited : settings_.refresh_commits;
  if (use.policy == "measured") commits = probe_stats_.safe_commits(use.line, use.kind);
  use.reuse.refresh_interval = request.cache.refresh_interval.value_or(settings_.refresh_interval);
  use.reuse.refresh_commits = request.cache.refresh_commits.value_or(commits);
}

Readiness PrefixCache::prepare(const GenerateRequest& request, CacheUse& use) {
  use.reuse = {};
  use.offered = nullptr;
  if (use.policy == "off") return Readiness::kReady;
  const std::vector<PathStep> path = tree_.find(request.cache.salt, request.prompt_ids);
  use.candidates = candidates(request, path);
  if (use.candidates.empty()) return Readiness::kReady;

  const std::span<const TokenId> ids(request.prompt_ids);
  StoredPrefix* stored = longest_stored(request, use);
  const int length = worth_making(use, path, stored ? stored->spec.prefix_len : 0);
  if (length > 0) {
    const auto longer = ids.first(static_cast<size_t>(length));
    if (StoredPrefix* made = begin_making(request.cache.salt, longer, false)) stored = made;
  }
  use.reuse.prefix_len = stored ? stored->spec.prefix_len : use.candidates.back();
  const auto prefix = ids.first(static_cast<size_t>(use.reuse.prefix_len));
  use.line = prefix_line(request.cache.salt, prefix,
                         stored ? stored->key : store_.key_of(request.cache.salt, prefix));
  use.kind = CanvasKind::of(use.reuse.prefix_len, total_len(request), request.gen_length);
  choose_refresh(request, use);
  if (!stored) return Readiness::kReady;
  const int depth = choose_depth(request, use);
  if (!stored->ready) {
    const bool teaches = use.policy == "measured" && !probe_stats_.knows(use.line, use.kind);
    return depth > 0 || teaches ? Readiness::kWaitsForEntry : Readiness::kReady;
  }
  use.reuse.depth = depth;
  use.offered = stored;
  return Readiness::kReady;
}

void PrefixCache::take_up(const GenerateRequest& request, CacheUse& use, SlabId slab) {
  if (use.policy == "off") return;
  use.held = std::exchange(use.offered, nullptr);
  ++(use.held ? stats_.cache_hits : stats_.cache_misses);
  if (!use.held) return;
  store_.acquire(*use.held);
  ++use.held->hits;
  if (use.policy == "measured" && probe_stats_.take_turn(use.line, use.kind) &&
      start_probe(request, use)) {
    return;
  }
  if (use.reuse.depth == 0) return;
  denoiser_.load_entry(use.held->entry, slab, use.reuse.depth);
  stats_.cached_tokens += use.reuse.prefix_len;
}

/// The request is decoded as without a cache, and a probe beside it.
bool PrefixCache::start_probe(const GenerateRequest& request, CacheUse& use) {
  StoredPrefix& stored = *use.held;
  const std::vector<LadderStep> steps = probe_stats_.depths(use.line, use.kind);
  Probe::Plan plan;
  plan.entry = stored.entry;
  plan.prefix_len = use.reuse.prefix_len;
  plan.depths = depths_;
  for (const LadderStep& step : steps) plan.rates.push_back(estimated_disagreement(step));
  // Who probes every request (bicached profile) wants to know all.
  plan.thorough = !probe_stats_.knows_model(use.kind) || settings_.probe_rate >= 1 ||
                  num_probes_ % (kSparingProbes + 1) == 0;
  if (!plan.thorough) plan.assumed_safe = greatest_safe(steps, settings_.max_disagreement);
  plan.sampling = request.sampling;
  plan.suppress_end_tokens = request.decode.ignore_eos;
  std::shared_ptr<Probe> probe = Probe::start(denoiser_, std::move(plan), total_len(request));
  if (!probe) {
    probe_stats_.give_up(use.line, use.kind);
    return false;
  }
  ++num_probes_;
  use.probe = probe;
  use.reuse.depth = 0;
  use.reuse.refresh_interval = use.reuse.refresh_commits = 1;
  store_.acquire(stored);
  probes_.push_back(std::make_unique<ProbeRun>(stored, use.line, use.kind, std::move(probe)));
  return true;
}

void PrefixCache::observe(CacheUse& use, const CanvasDecoder& decoder,
                          std::span<const RowResult> results) {
  if (!decoder.next().refresh || !decoder.next().decides) return;
  if (const auto probe = use.probe.lock()) probe->add(ProbeCase::of(decoder, results));
}

void PrefixCache::release(CacheUse& use, const GenerationStats* stats) {
  if (const auto probe = use.probe.lock()) probe->close();
  if (!use.held) return;
  const int64_t saved =
      stats ? int64_t{stats->num_refreshes} * use.reuse.prefix_len * use.reuse.depth : 0;
  stats_.saved_row_layers += saved;
  let_go(*std::exchange(use.held, nullptr), saved);
}

void PrefixCache::let_go(StoredPrefix& stored, int64_t saved) {
  store_.release(stored, saved);
  if (stored.doomed && stored.num_users == 0) destroy(stored.entry);
}

}  // namespace bicached
