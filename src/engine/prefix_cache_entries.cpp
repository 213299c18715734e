// Entries being made, probes that run, and how both end.
#include <algorithm>
#include <cstdio>

#include "bicached/error.h"
#include "engine/prefix_cache_parts.h"

namespace bicached {
namespace {

/// Prefixes whose forward failed that are remembered.
constexpr size_t kMaxFailed = 1000;

std::string megabytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MB", static_cast<double>(bytes) * 1e-6);
  return text;
}

}  // namespace

void PrefixCache::Making::commit(std::span<const RowResult>) {
  cache_.denoiser_.fill_entry(stored_.entry, slab_);
  close();
  stored_.ready = true;
  ++cache_.stats_.cache_made;
  log_info("prefix " + stored_.key.hex().substr(0, 8) + " stored: " +
           std::to_string(stored_.spec.prefix_len) + " tokens, " + megabytes(stored_.bytes) +
           "; the cache holds " + std::to_string(cache_.store_.entries().size()) + " prefixes, " +
           megabytes(cache_.store_.bytes()) + " of " + megabytes(cache_.store_.budget_bytes()));
}

void PrefixCache::Making::fail(ErrorCode, const std::string& why) {
  log_warn("prefix " + stored_.key.hex().substr(0, 8) + " can't be stored: " + why);
  if (cache_.failed_.size() >= kMaxFailed) cache_.failed_.erase(cache_.failed_.begin());
  cache_.failed_.insert(stored_.key);
  close();
  cache_.destroy(stored_.entry);
}

/// Within the budget; others may go for it. Nothing: there is no room.
std::optional<EntryId> PrefixCache::create_entry(const EntrySpec& spec) {
  const auto victims = store_.room_for(denoiser_.entry_bytes(spec));
  if (!victims) return std::nullopt;
  for (const EntryId victim : *victims) {
    destroy(victim);
    ++stats_.cache_evictions;
  }
  try {
    return denoiser_.create_entry(spec);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
    drop_unused();
    return std::nullopt;
  }
}

/// Null: there is no room.
std::shared_ptr<OwnStates> PrefixCache::make_own(const EntrySpec& spec) {
  const std::optional<EntryId> entry = create_entry(spec);
  if (!entry) return nullptr;
  return std::make_shared<OwnStates>(denoiser_, store_, *entry, denoiser_.entry_bytes(spec));
}

/// In place of a shallower one. Null: there is no room, it is being made, or its forward failed
/// before.
StoredPrefix* PrefixCache::begin_making(const std::string& salt, std::span<const TokenId> ids,
                                        int max_depth, bool pinned) {
  StoredPrefix prefix;
  prefix.key = store_.key_of(salt, ids);
  prefix.spec = spec_;
  prefix.spec.max_depth = max_depth;
  std::erase_if(prefix.spec.boundaries, [&](int boundary) { return boundary > max_depth; });
  prefix.spec.prefix_len = static_cast<int>(ids.size());
  prefix.bytes = denoiser_.entry_bytes(prefix.spec);
  const StoredPrefix* old = store_.find(salt, ids);
  const bool key_is_taken = old ? !old->ready : store_.has_key(prefix.key);
  if (depths_.empty() || failed_.contains(prefix.key) || key_is_taken) return nullptr;
  const std::optional<SlabId> slab = denoiser_.open_slab(prefix.spec.prefix_len);
  const std::optional<EntryId> entry = slab ? create_entry(prefix.spec) : std::nullopt;
  if (!entry) {
    if (slab) denoiser_.close_slab(*slab);
    ++num_refused_;
    return nullptr;
  }
  // Looked up again: it may have gone to make room.
  if (StoredPrefix* shallower = store_.find(salt, ids)) retire(*shallower);
  prefix.entry = *entry;
  prefix.salt = salt;
  prefix.ids.assign(ids.begin(), ids.end());
  prefix.making_cost = static_cast<int64_t>(ids.size()) * max_depth;
  prefix.pinned = pinned;
  prefix.made = prefix.used = StoredPrefix::Clock::now();
  StoredPrefix& stored = store_.insert(std::move(prefix));
  making_.push_back(std::make_unique<Making>(*this, stored, *slab));
  return &stored;
}

void PrefixCache::retire(StoredPrefix& stored) {
  store_.doom(stored);
  if (stored.num_users == 0) destroy(stored.entry);
}

void PrefixCache::destroy(EntryId entry) {
  store_.erase(entry);
  denoiser_.destroy_entry(entry);
}

std::vector<ForwardPart*> PrefixCache::making(int max_rows) {
  std::erase_if(making_, [](const auto& making) { return making->is_done(); });
  // Some may be gone: the cache was cleared, or a forward failed.
  for (const std::vector<TokenId>& ids : pinned_) store_pinned(ids);
  std::vector<ForwardPart*> parts;
  for (const auto& making : making_) {
    max_rows -= making->num_rows();
    if (max_rows < 0 && !parts.empty()) break;
    parts.push_back(making.get());
  }
  return parts;
}

/// Whether it is stored now, or is being made.
bool PrefixCache::store_pinned(std::span<const TokenId> ids) {
  StoredPrefix* stored = store_.find("", ids);
  if (!stored) return begin_making("", ids, spec_.max_depth, true) != nullptr;
  stored->pinned = true;
  return true;
}

std::vector<ForwardPart*> PrefixCache::probing(int max_rows, bool must) {
  std::vector<ForwardPart*> parts;
  for (const auto& run : probes_) {
    const int rows = run->num_rows();
    if (!run->has_work()) continue;
    if (rows > max_rows && !(must && parts.empty())) {
      run->miss();
      continue;
    }
    parts.push_back(run.get());
    max_rows -= rows;
  }
  return parts;
}

bool PrefixCache::has_work() const {
  return std::ranges::any_of(making_, [](const auto& making) { return !making->is_done(); }) ||
         std::ranges::any_of(probes_, [](const auto& run) { return run->has_work(); });
}

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
  if (run.has_verdict()) {
    probe_stats_.record(run.line, run.kind, run.probe->shared(), run.probe->own());
    ++stats_.probes;
    stats_.probe_checks += run.probe->num_checks();
    stats_.probe_disagreements += run.probe->num_disagreements();
  } else {
    probe_stats_.skip(run.line, run.kind);
  }
  close(run);
}

void PrefixCache::close(ProbeRun& run) {
  stats_.probe_row_layers += run.probe->row_layers();
  let_go(run.stored, 0);
}

bool PrefixCache::make_room() {
  const size_t before = probes_.size();
  sweep();
  if (probes_.size() == before) drop_probes();
  return before > 0;
}

void PrefixCache::drop_probes() {
  for (const auto& run : probes_) {
    probe_stats_.skip(run->line, run->kind);
    close(*run);
  }
  probes_.clear();
}

int PrefixCache::drop_unused() {
  const std::vector<EntryId> entries = store_.droppable(false);
  for (const EntryId entry : entries) destroy(entry);
  stats_.cache_evictions += static_cast<int64_t>(entries.size());
  return static_cast<int>(entries.size());
}

}  // namespace bicached
