// What operators see of the prefix cache and do with it, and what outlives a restart.
#include <filesystem>
#include <fstream>

#include "base/json_file.h"
#include "base/log.h"
#include "bicached/error.h"
#include "engine/prefix_cache_parts.h"

namespace bicached {
namespace {

constexpr size_t kMaxStateBytes = size_t{64} << 20;

double seconds_since(StoredPrefix::Clock::time_point then) {
  return std::chrono::duration<double>(StoredPrefix::Clock::now() - then).count();
}

}  // namespace

void PrefixCache::pin(std::vector<TokenId> ids) {
  if (!store_pinned(ids)) {
    if (depths_.empty()) {
      throw Error(ErrorCode::kInvalidSettings,
                  "pinned_prefixes: nothing is stored at cache_depth 0", "pinned_prefixes");
    }
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
    load_state();
  }
  tree_.clear();
  failed_.clear();
  const std::vector<EntryId> entries = store_.droppable(true);
  for (const EntryId entry : entries) destroy(entry);
  store_.doom_ready();
  for (const std::vector<TokenId>& ids : pinned_) store_pinned(ids);
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
  if (settings_.state_is_read_only && !std::filesystem::exists(state_file(), error)) {
    throw Error(ErrorCode::kInvalidSettings,
                "state_dir: there is no " + state_file() +
                    "; a server with this state_dir writes it, or bicached profile --by decisions",
                "state_dir");
  }
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

bool PrefixCache::has_unsaved() const {
  return !settings_.state_dir.empty() && !settings_.state_is_read_only &&
         probe_stats_.version() != saved_version_;
}

void PrefixCache::save_state() {
  if (!has_unsaved()) return;
  // Written beside and renamed: a crash or a full disk leaves the old file or the new one.
  const std::string path = state_file(), fresh = path + ".new";
  std::ofstream file(fresh, std::ios::binary);
  file << probe_stats_.to_json();
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(fresh, path, error);
  if (!file || error) {
    log_warn("probe outcomes can't be written to " + path +
             (error ? ": " + error.message() : ": the disk may be full or not writable"));
    return;
  }
  saved_version_ = probe_stats_.version();
}

}  // namespace bicached
