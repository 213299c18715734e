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
/// A probe's own states take at most this part of the budget, else only the shared depth is probed.
constexpr int kProbeShare = 4;
/// An entry that is probed within so many uses is made whole at once, not twice.
constexpr int kSoon = 10;

int total_len(const GenerateRequest& request) {
  return static_cast<int>(request.prompt_ids.size() + request.suffix_ids.size()) +
         request.gen_length;
}

/// What a request did not run thanks to the shared entry. The first of its forwards counts as a
/// refresh; the others save what the entry's depth spares beyond that of refreshes.
int64_t saved_row_layers(const Reuse& reuse, int num_refreshes) {
  if (num_refreshes == 0) return 0;
  const int in_refresh = std::max(0, reuse.depth - reuse.refresh_depth);
  return reuse.prefix_len * (reuse.depth + int64_t{num_refreshes - 1} * in_refresh);
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
  const auto check_depth = [this](const char* name, int depth) {
    if (depth <= info_.num_layers) return;
    throw Error(ErrorCode::kInvalidSettings,
                std::string(name) + " is " + std::to_string(depth) + "; the model has " +
                    std::to_string(info_.num_layers) + " layers",
                name);
  };
  if (settings_.policy == "fixed") check_depth("cache_depth", settings_.depth);
  check_depth("refresh_depth", settings_.refresh_depth);
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
    if (!store_.has_length(*length)) continue;
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

/// The prefix of the request that is looked at. Hashing it once is enough.
void PrefixCache::aim_at(const GenerateRequest& request, CacheUse& use, int prefix_len) const {
  if (prefix_len == use.reuse.prefix_len) return;
  const auto prefix =
      std::span<const TokenId>(request.prompt_ids).first(static_cast<size_t>(prefix_len));
  use.reuse.prefix_len = prefix_len;
  use.line = prefix_line(request.cache.salt, prefix, store_.key_of(request.cache.salt, prefix));
  use.kind = CanvasKind::of(prefix_len, total_len(request), request.gen_length);
}

/// Whether the request is to be probed, or nothing is known that it could go by.
bool PrefixCache::teaches(const CacheUse& use) {
  return use.policy == "measured" &&
         (!probe_stats_.knows(use.line, use.kind) || probe_stats_.is_due(use.line, use.kind));
}

/// What an entry has to have, given that there is one of depth `has`.
int PrefixCache::depth_to_make(const GenerateRequest& request, const CacheUse& use, int has) {
  if (teaches(use)) return spec_.max_depth;
  const int depth = choose_depth(request, use);
  if (use.policy != "measured" || depth <= has) return depth;
  return probe_stats_.is_due(use.line, use.kind, kSoon) ? spec_.max_depth : depth;
}

/// What the policy says, down to a depth that entries keep.
int PrefixCache::choose_depth(const GenerateRequest& request, const CacheUse& use) const {
  const auto policy = make_depth_policy(use.policy, policy_params(request, settings_, table_));
  const int wanted = policy->choose({use.reuse.prefix_len, total_len(request), info_.num_layers,
                                     depths_, probe_stats_.depths(use.line, use.kind)});
  const auto above = std::ranges::upper_bound(depths_, wanted);
  return above == depths_.begin() ? 0 : *std::prev(above);
}

/// What a request reuses of its own forwards, also where no prefix is shared.
Reuse PrefixCache::choose_inside(const GenerateRequest& request, const CacheUse& use) const {
  const int unlimited = INT_MAX;
  const int commits = settings_.refresh_commits < 1 ? unlimited : settings_.refresh_commits;
  Reuse reuse;
  reuse.refresh_interval = request.cache.refresh_interval.value_or(settings_.refresh_interval);
  reuse.refresh_commits = request.cache.refresh_commits.value_or(commits);
  reuse.intra_cache = request.decode.intra_cache.value_or(
      use.policy == "off" ? IntraCache::kNone : IntraCache::kAdaptive);
  const int refresh_depth = use.policy == "measured" ? 0 : settings_.refresh_depth;
  reuse.refresh_depth =
      std::min(request.cache.refresh_depth.value_or(refresh_depth), info_.num_layers);
  return reuse;
}

Readiness PrefixCache::prepare(const GenerateRequest& request, CacheUse& use) {
  use.reuse = choose_inside(request, use);
  use.offered = nullptr;
  if (use.policy == "off") return Readiness::kReady;
  const std::vector<PathStep> path = tree_.find(request.cache.salt, request.prompt_ids);
  use.candidates = candidates(request, path);
  if (use.candidates.empty()) return Readiness::kReady;

  const std::span<const TokenId> ids(request.prompt_ids);
  StoredPrefix* stored = longest_stored(request, use);
  const int stored_len = stored ? stored->spec.prefix_len : 0;
  const int longer = worth_making(use, path, stored_len);
  if (const int wanted = longer > 0 ? longer : stored_len; wanted > 0) {
    aim_at(request, use, wanted);
    const int has = wanted == stored_len ? stored->spec.max_depth : 0;
    if (const int depth = depth_to_make(request, use, has); depth > has) {
      const auto prefix = ids.first(static_cast<size_t>(wanted));
      begin_making(request.cache.salt, prefix, depth, false);
      stored = longest_stored(request, use);  // others may have gone to make room
    }
  }
  const int length = stored ? stored->spec.prefix_len : longer > 0 ? longer : use.candidates.back();
  aim_at(request, use, length);
  const int depth = stored ? std::min(choose_depth(request, use), stored->spec.max_depth) : 0;
  if (stored && stored->ready) {
    use.reuse.depth = depth;
    use.offered = stored;
  }
  if (use.policy == "measured" && !request.cache.refresh_depth) {
    use.reuse.refresh_depth = probe_stats_.safe_refresh_depth(use.line, use.kind);
  }
  if (!stored || stored->ready) return Readiness::kReady;
  return depth > 0 || teaches(use) ? Readiness::kWaitsForEntry : Readiness::kReady;
}

void PrefixCache::take_up(const GenerateRequest& request, CacheUse& use, SlabId slab) {
  if (use.policy == "off") return;
  use.slab = slab;
  use.held = std::exchange(use.offered, nullptr);
  ++(use.held ? stats_.cache_hits : stats_.cache_misses);
  if (use.held) {
    store_.acquire(*use.held);
    ++use.held->hits;
  }
  const bool is_probed = use.policy == "measured" && use.reuse.prefix_len > 0 &&
                         probe_stats_.take_turn(use.line, use.kind);
  if (is_probed) {
    if (use.held && use.held->spec.max_depth == spec_.max_depth && start_probe(request, use)) {
      return;
    }
    probe_stats_.give_up(use.line, use.kind);
  }
  if (use.reuse.depth > 0) {
    denoiser_.load_entry(use.held->entry, slab, use.reuse.depth);
    stats_.cached_tokens += use.reuse.prefix_len;
  }
  const int own_states = use.reuse.own_states(total_len(request), info_.num_layers);
  if (own_states > 0) {
    use.own = make_own({own_states, 0, {use.reuse.refresh_depth}});
    if (!use.own) use.reuse.refresh_depth = 0;
  }
}

/// The request is decoded as without a cache, and a probe beside it. Nothing: there is no room.
bool PrefixCache::start_probe(const GenerateRequest& request, CacheUse& use) {
  StoredPrefix& stored = *use.held;
  Probe::Plan plan;
  plan.prefix_len = use.reuse.prefix_len;
  plan.prompt_len = static_cast<int>(request.prompt_ids.size());
  plan.intra_cache = use.reuse.intra_cache;
  plan.depths = depths_;
  // Who probes every request (bicached profile) wants to know all.
  plan.thorough = !probe_stats_.knows_model(use.kind) || settings_.probe_rate >= 1 ||
                  num_probes_ % (kSparingProbes + 1) == 0;
  const auto search = [&](EntryId entry, const std::vector<LadderStep>& steps) {
    Probe::Search out{entry, {}, 0};
    for (const LadderStep& step : steps) out.rates.push_back(estimated_disagreement(step));
    if (!plan.thorough) out.assumed_safe = greatest_safe(steps, settings_.max_disagreement);
    return out;
  };
  EntrySpec own = stored.spec;
  if (use.reuse.is_adaptive()) own.prefix_len = total_len(request);
  // Shared entries may go for it, but not most of them for one probe.
  const bool fits = denoiser_.entry_bytes(own) <= store_.budget_bytes() / kProbeShare;
  use.own = fits ? make_own(own) : nullptr;
  plan.shared = search(stored.entry, probe_stats_.depths(use.line, use.kind));
  plan.own =
      search(use.own ? use.own->entry : kNoId, probe_stats_.refresh_depths(use.line, use.kind));
  plan.sampling = request.sampling;
  plan.suppress_end_tokens = request.decode.ignore_eos;
  std::shared_ptr<Probe> probe = Probe::start(denoiser_, std::move(plan), total_len(request));
  if (!probe) {
    use.own.reset();
    return false;
  }
  ++num_probes_;
  use.probe = probe;
  use.reuse.depth = use.reuse.refresh_depth = 0;
  use.reuse.refresh_commits = 1;
  store_.acquire(stored);
  probes_.push_back(std::make_unique<ProbeRun>(stored, use, std::move(probe)));
  return true;
}

void PrefixCache::observe(CacheUse& use, const CanvasDecoder& decoder,
                          std::span<const RowResult> results) {
  const auto probe = use.probe.lock();
  if (!probe || !decoder.next().refresh) return;
  if (use.own && !std::exchange(use.own->has_kv, true)) {
    denoiser_.fill_entry(use.own->entry, use.slab);
  }
  if (decoder.next().decides) probe->add(ProbeCase::of(decoder, results));
}

void PrefixCache::release(CacheUse& use, const GenerationStats* stats) {
  if (const auto probe = use.probe.lock()) probe->close();
  use.own.reset();
  if (!use.held) return;
  const int64_t saved = stats ? saved_row_layers(use.reuse, stats->num_refreshes) : 0;
  stats_.saved_row_layers += saved;
  let_go(*std::exchange(use.held, nullptr), saved);
}

void PrefixCache::let_go(StoredPrefix& stored, int64_t saved) {
  store_.release(stored, saved);
  if (stored.doomed && stored.num_users == 0) destroy(stored.entry);
}

}  // namespace bicached
