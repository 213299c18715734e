// What operators see of the prefix cache and do with it, and what outlives a restart.
#include <filesystem>

#include "base/log.h"
#include "bicached/error.h"
#include "engine/prefix_cache.h"

namespace bicached {
namespace {

double seconds_since(StoredPrefix::Clock::time_point then) {
  return std::chrono::duration<double>(StoredPrefix::Clock::now() - then).count();
}

}  // namespace

int PrefixCache::clear(bool forget_probes) {
  if (forget_probes) {
    learner_.forget();
    saved_version_ = -1;  // the file has to forget them too
    if (settings_.state_is_read_only) load_state();
  }
  uses_.clear();
  failed_.clear();
  const std::vector<EntryId> entries = store_.droppable(true);
  for (const EntryId entry : entries) destroy(entry);
  store_.doom_ready();
  for (const std::vector<TokenId>& ids : pinned_) store_warm(ids, true);
  return static_cast<int>(entries.size());
}

CacheReport PrefixCache::report(int max_entries) const {
  CacheReport report;
  report.policy = policy_.name;
  report.start = settings_.start.reason;
  report.budget_bytes = store_.budget_bytes();
  report.bytes = store_.bytes();
  report.num_entries = num_entries();
  report.hits = stats_.hits;
  report.misses = stats_.misses;
  report.made = stats_.made;
  report.evictions = stats_.evictions;
  report.refused = num_refused_;
  report.probes = stats_.probes;
  report.probes_running = probes_running_;
  std::map<Hash128, std::vector<PlanReport>> probes{{ReuseLearner::kEveryPrefix, {}}};
  const auto listed = store_.most_worth(static_cast<size_t>(max_entries));
  for (const StoredPrefix* stored : listed) probes[stored->key] = {};
  learner_.report(probes);
  for (const StoredPrefix* most : listed) {
    const StoredPrefix& stored = *most;
    EntryReport entry;
    entry.id = stored.key.hex();
    if (!stored.salt.empty()) entry.salt = store_.key_of(stored.salt, {}).hex().substr(0, 8);
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
    std::erase_if(entry.depths, [&](int depth) { return depth > stored.spec.max_depth; });
    entry.probes = probes[stored.key];
    report.entries.push_back(std::move(entry));
  }
  report.model_probes = probes[ReuseLearner::kEveryPrefix];
  return report;
}

void PrefixCache::update_gauges() {
  stats_.entries = num_entries();
  stats_.bytes = store_.bytes();
  stats_.budget_bytes = store_.budget_bytes();
}

void PrefixCache::load_state() {
  if (settings_.state_dir.empty()) return;
  std::error_code error;
  if (!settings_.state_is_read_only) {
    std::filesystem::create_directories(settings_.state_dir, error);
  }
  if (error) {
    throw Error(
        ErrorCode::kInvalidSettings,
        "state_dir is '" + settings_.state_dir + "', which can't be made: " + error.message(),
        "state_dir");
  }
  if (!settings_.state_is_read_only && !state_file_.lock()) {
    is_locked_out_ = true;
    log_warn("state_dir: another server works with " + state_file_.path() +
             "; this one starts from what is there, and keeps nothing of its own");
  }
  try {
    const std::optional<std::string> text = state_file_.read();
    if (text) learner_.from_json(*text, state_file_.path());
    if (text || !settings_.state_is_read_only) return;
  } catch (const Error& broken) {
    if (settings_.state_is_read_only) throw;
    learner_.forget();
    if (is_locked_out_) return;
    state_file_.set_aside(broken.what());
    return;
  }
  throw Error(
      ErrorCode::kInvalidSettings,
      "state_dir: there is no " + state_file_.path() +
          "; a server with this state_dir writes it, or bicached-lab profile --by decisions",
      "state_dir");
}

bool PrefixCache::has_unsaved() const {
  return !settings_.state_dir.empty() && !settings_.state_is_read_only && !is_locked_out_ &&
         learner_.version() != saved_version_;
}

void PrefixCache::close_state() {
  save_state();
  state_file_.unlock();
}

void PrefixCache::save_state() {
  if (has_unsaved() && state_file_.write(learner_.to_json())) saved_version_ = learner_.version();
}

}  // namespace bicached
