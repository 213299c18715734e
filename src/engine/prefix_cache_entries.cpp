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
  if (cache_.failed_.size() < kMaxFailed) cache_.failed_.insert(stored_.key);
  close();
  const EntryId entry = stored_.entry;
  cache_.destroy(entry);
}

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

}  // namespace bicached
