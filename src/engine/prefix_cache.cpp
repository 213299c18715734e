#include "engine/prefix_cache.h"

#include <algorithm>
#include <climits>
#include <filesystem>
#include <fstream>

#include "base/json_file.h"
#include "base/log.h"
#include "bicached/error.h"
#include "decode/prefix_entry.h"

namespace bicached {
namespace {

/// Recent prompts remembered: a few MB, hundreds of long conversations.
constexpr size_t kTreeTokens = size_t{1} << 20;
/// A longer prefix than the stored one gets an entry of its own only from this factor on, so that a
/// conversation that grows turn by turn makes few.
constexpr int kGrowthNumerator = 5, kGrowthDenominator = 4;
/// So many probes spare hopeless tests for each that spares nothing.
constexpr int kSparingProbes = 7;
constexpr size_t kMaxFailed = 1000;
/// Models of at most so many layers can be entered before every one of them.
constexpr int kAllDepths = 16;
constexpr size_t kMaxStateBytes = size_t{64} << 20;

std::string megabytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MB", static_cast<double>(bytes) * 1e-6);
  return text;
}

double seconds_since(StoredPrefix::Clock::time_point then) {
  return std::chrono::duration<double>(StoredPrefix::Clock::now() - then).count();
}

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

/// An entry being made: the prefix as a canvas of its own, in the next forward.
class PrefixCache::Making final : public ForwardPart {
 public:
  Making(PrefixCache& cache, StoredPrefix& stored, SlabId slab)
      : cache_(cache), stored_(stored), slab_(slab) {}

  bool is_done() const { return slab_ == kNoId; }
  int num_rows() const override { return stored_.spec.prefix_len; }
  int num_logit_rows() const override { return 0; }
  void append_to(Forward& forward) override {
    forward.groups.push_back(prefix_entry_group(stored_.ids, slab_, stored_.entry));
  }

  void commit(std::span<const RowResult>) override {
    cache_.denoiser_.fill_entry(stored_.entry, slab_);
    close();
    stored_.ready = true;
    ++cache_.stats_.cache_made;
    log_info("prefix " + stored_.key.hex().substr(0, 8) + " stored: " +
             std::to_string(stored_.spec.prefix_len) + " tokens, " + megabytes(stored_.bytes) +
             "; the cache holds " + std::to_string(cache_.store_.entries().size()) + " prefixes, " +
             megabytes(cache_.store_.bytes()) + " of " + megabytes(cache_.store_.budget_bytes()));
  }

  void fail(ErrorCode, const std::string& why) override {
    log_warn("prefix " + stored_.key.hex().substr(0, 8) + " can't be stored: " + why);
    if (cache_.failed_.size() < kMaxFailed) cache_.failed_.insert(stored_.key);
    close();
    const EntryId entry = stored_.entry;
    cache_.destroy(entry);
  }

 private:
  void close() {
    cache_.denoiser_.close_slab(slab_);
    slab_ = kNoId;
  }

  PrefixCache& cache_;
  StoredPrefix& stored_;
  SlabId slab_;
};

/// A probe from its request's start to its verdict, with a hold on the entry.
class PrefixCache::ProbeRun final : public ForwardPart {
 public:
  ProbeRun(StoredPrefix& stored_in, PrefixLine line_in, CanvasKind kind_in,
           std::shared_ptr<Probe> probe_in)
      : stored(stored_in), line(std::move(line_in)), kind(kind_in), probe(std::move(probe_in)) {}

  bool is_over() const { return failed_ || probe->is_finished(); }
  bool has_verdict() const { return !failed_ && probe->num_checks() > 0; }
  bool has_work() const { return !failed_ && probe->has_work(); }
  int num_rows() const override { return probe->num_rows(); }
  int num_logit_rows() const override { return probe->num_logit_rows(); }
  void append_to(Forward& forward) override { probe->append_to(forward); }
  void commit(std::span<const RowResult> results) override { probe->commit(results); }
  void fail(ErrorCode, const std::string& why) override {
    log_warn("a probe failed: " + why);
    failed_ = true;
  }

  StoredPrefix& stored;
  const PrefixLine line;
  const CanvasKind kind;
  const std::shared_ptr<Probe> probe;

 private:
  bool failed_ = false;
};

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
  use.held = nullptr;
  use.found = false;
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
  use.held = stored;
  use.found = true;
  return Readiness::kReady;
}

void PrefixCache::take_up(const GenerateRequest& request, CacheUse& use, SlabId slab) {
  if (use.policy == "off") return;
  ++(use.found ? stats_.cache_hits : stats_.cache_misses);
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
  plan.thorough = !probe_stats_.knows_model(use.kind) || num_probes_ % (kSparingProbes + 1) == 0;
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
  if (!use.probe || !decoder.next().refresh || !decoder.next().decides) return;
  use.probe->add(ProbeCase::of(decoder, results));
}

void PrefixCache::release(CacheUse& use, const GenerationStats* stats) {
  if (use.probe) use.probe->close();
  use.probe.reset();
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

// --- Entries and probes ------------------------------------------------------------------------

/// Null: there is no room, or its forward failed before.
StoredPrefix* PrefixCache::begin_making(const std::string& salt, std::span<const TokenId> ids,
                                        bool pinned) {
  StoredPrefix prefix;
  prefix.key = store_.key_of(salt, ids);
  prefix.spec = spec_;
  prefix.spec.prefix_len = static_cast<int>(ids.size());
  prefix.bytes = denoiser_.entry_bytes(prefix.spec);
  if (depths_.empty() || failed_.contains(prefix.key)) return nullptr;
  const auto victims = store_.room_for(prefix.bytes, prefix.key);
  const std::optional<SlabId> slab =
      victims ? denoiser_.open_slab(prefix.spec.prefix_len) : std::nullopt;
  if (!slab) {
    ++num_refused_;
    return nullptr;
  }
  for (const EntryId victim : *victims) {
    destroy(victim);
    ++stats_.cache_evictions;
  }
  try {
    prefix.entry = denoiser_.create_entry(prefix.spec);
  } catch (const Error& error) {
    denoiser_.close_slab(*slab);
    if (error.code() != ErrorCode::kOutOfMemory) throw;
    drop_unused();
    ++num_refused_;
    return nullptr;
  }
  prefix.salt = salt;
  prefix.ids.assign(ids.begin(), ids.end());
  prefix.making_cost = static_cast<int64_t>(ids.size()) * info_.num_layers;
  prefix.pinned = pinned;
  prefix.made = prefix.used = StoredPrefix::Clock::now();
  StoredPrefix& stored = store_.insert(std::move(prefix));
  making_.push_back(std::make_unique<Making>(*this, stored, *slab));
  return &stored;
}

void PrefixCache::destroy(EntryId entry) {
  store_.erase(entry);
  denoiser_.destroy_entry(entry);
}

std::vector<ForwardPart*> PrefixCache::making() {
  std::erase_if(making_, [](const auto& making) { return making->is_done(); });
  std::vector<ForwardPart*> parts;
  for (const auto& making : making_) parts.push_back(making.get());
  return parts;
}

std::vector<ForwardPart*> PrefixCache::probing(int max_rows, bool must) {
  sweep();
  std::vector<ForwardPart*> parts;
  for (const auto& run : probes_) {
    const int rows = run->num_rows();
    if (!run->has_work() || (rows > max_rows && !(must && parts.empty()))) continue;
    parts.push_back(run.get());
    max_rows -= rows;
  }
  return parts;
}

bool PrefixCache::has_work() const {
  return std::ranges::any_of(making_, [](const auto& making) { return !making->is_done(); }) ||
         std::ranges::any_of(probes_, [](const auto& run) { return run->has_work(); });
}

/// Takes out the probes that have come to an end.
void PrefixCache::sweep() {
  for (auto it = probes_.begin(); it != probes_.end();) {
    if (!(*it)->is_over()) {
      ++it;
      continue;
    }
    end_probe(**it);
    it = probes_.erase(it);
  }
}

void PrefixCache::end_probe(ProbeRun& run) {
  StoredPrefix& stored = run.stored;
  if (run.has_verdict()) {
    const std::optional<ProbeVerdict> commits = run.probe->commits();
    probe_stats_.record(run.line, run.kind, run.probe->depth(), commits ? &*commits : nullptr);
    ++stats_.probes;
    stats_.probe_checks += run.probe->num_checks();
    stats_.probe_disagreements += run.probe->num_disagreements();
    stats_.probe_row_layers += run.probe->row_layers();
  } else {
    probe_stats_.give_up(run.line, run.kind);
  }
  let_go(stored, 0);
}

bool PrefixCache::drop_probes() {
  if (probes_.empty()) return false;
  for (const auto& run : probes_) {
    probe_stats_.give_up(run->line, run->kind);
    let_go(run->stored, 0);
  }
  probes_.clear();
  return true;
}

int PrefixCache::drop_unused() {
  const std::vector<EntryId> entries = store_.droppable(false);
  for (const EntryId entry : entries) destroy(entry);
  stats_.cache_evictions += static_cast<int64_t>(entries.size());
  return static_cast<int>(entries.size());
}

// --- What operators do -------------------------------------------------------------------------

void PrefixCache::pin(std::vector<TokenId> ids) {
  if (StoredPrefix* stored = store_.find("", ids)) {
    stored->pinned = true;
  } else if (!begin_making("", ids, true)) {
    EntrySpec spec = spec_;
    spec.prefix_len = static_cast<int>(ids.size());
    throw Error(ErrorCode::kInvalidSettings,
                "pinned_prefixes: one of " + std::to_string(ids.size()) + " tokens takes " +
                    std::to_string(denoiser_.entry_bytes(spec)) + " bytes; cache_bytes is " +
                    std::to_string(settings_.cache_bytes) + ", of which " +
                    std::to_string(store_.bytes()) + " are used",
                "pinned_prefixes");
  }
  pinned_.push_back(std::move(ids));
}

int PrefixCache::clear(bool forget_probes) {
  if (forget_probes) {
    drop_probes();
    probe_stats_.forget();
  }
  tree_.clear();
  failed_.clear();
  const std::vector<EntryId> entries = store_.droppable(true);
  for (const EntryId entry : entries) destroy(entry);
  for (const StoredPrefix& left : store_.entries()) {
    if (left.ready) store_.find(left.entry)->doomed = true;
  }
  for (const std::vector<TokenId>& ids : pinned_) begin_making("", ids, true);
  return static_cast<int>(entries.size());
}

CacheReport PrefixCache::report() const {
  CacheReport report;
  report.policy = settings_.policy;
  report.budget_bytes = store_.budget_bytes();
  report.bytes = store_.bytes();
  report.hits = stats_.cache_hits;
  report.misses = stats_.cache_misses;
  report.made = stats_.cache_made;
  report.evictions = stats_.cache_evictions;
  report.refused = num_refused_;
  report.probes = stats_.probes;
  report.probes_running = static_cast<int64_t>(probes_.size());
  for (const StoredPrefix& stored : store_.entries()) {
    EntryReport entry;
    entry.id = stored.key.hex();
    entry.salt = stored.salt;
    entry.num_tokens = stored.spec.prefix_len;
    entry.bytes = stored.bytes;
    entry.hits = stored.hits;
    entry.num_users = stored.num_users;
    entry.pinned = stored.pinned;
    entry.ready = stored.ready;
    entry.saved_row_layers = stored.saved;
    entry.age_s = seconds_since(stored.made);
    entry.idle_s = seconds_since(stored.used);
    entry.depths = depths_;
    entry.probes = probe_stats_.report(prefix_line(stored.salt, stored.ids, stored.key));
    report.entries.push_back(std::move(entry));
  }
  report.model_probes = probe_stats_.report_model();
  return report;
}

void PrefixCache::update_gauges() {
  stats_.cache_entries = static_cast<int64_t>(store_.entries().size());
  stats_.cache_bytes = store_.bytes();
  stats_.cache_budget_bytes = store_.budget_bytes();
}

void PrefixCache::check_integrity() const {
  tree_.check_integrity();
  store_.check_integrity();
}

// --- State over a restart ----------------------------------------------------------------------

std::string PrefixCache::state_file() const {
  return settings_.state_dir + "/probes-" + info_.fingerprint.substr(0, 16) + ".json";
}

void PrefixCache::load_state() {
  if (settings_.state_dir.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(settings_.state_dir, error);
  if (error) {
    throw Error(
        ErrorCode::kInvalidSettings,
        "state_dir is '" + settings_.state_dir + "', which can't be made: " + error.message(),
        "state_dir");
  }
  if (!std::filesystem::exists(state_file(), error)) return;
  probe_stats_.from_json(read_text_file(state_file(), kMaxStateBytes, ErrorCode::kInvalidSettings),
                         state_file());
}

void PrefixCache::save_state() {
  if (settings_.state_dir.empty() || probe_stats_.version() == saved_version_) return;
  saved_version_ = probe_stats_.version();
  // Written beside and renamed: a crash leaves the old file or the new one.
  const std::string path = state_file(), fresh = path + ".new";
  std::ofstream(fresh, std::ios::binary) << probe_stats_.to_json();
  std::error_code error;
  std::filesystem::rename(fresh, path, error);
  if (error) log_warn("probe outcomes can't be written to " + path + ": " + error.message());
}

}  // namespace bicached
