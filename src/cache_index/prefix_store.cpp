#include "cache_index/prefix_store.h"

#include <algorithm>
#include <cmath>

#include "bicached/error.h"

namespace bicached {
namespace {

/// Savings count half after so many uses of any entry: a few turns over a busy cache.
constexpr double kHalfLife = 256;

}  // namespace

Hash128 PrefixStore::key_of(const std::string& salt, std::span<const TokenId> ids) const {
  const int length = static_cast<int>(ids.size());
  return keys_of(salt, ids, std::span(&length, 1)).front();
}

std::vector<Hash128> PrefixStore::keys_of(const std::string& salt, std::span<const TokenId> ids,
                                          std::span<const int> lengths) const {
  Hasher hasher;
  hasher.add(fingerprint_);
  hasher.add(salt);
  std::vector<Hash128> keys;
  size_t done = 0;
  for (const int length : lengths) {
    for (; done < static_cast<size_t>(length); ++done) {
      hasher.add({reinterpret_cast<const char*>(&ids[done]), sizeof(TokenId)});
    }
    keys.push_back(hasher.digest());
  }
  return keys;
}

StoredPrefix* PrefixStore::find(const Hash128& key, const std::string& salt,
                                std::span<const TokenId> ids) {
  const auto it = by_key_.find(key);
  if (it == by_key_.end()) return nullptr;
  StoredPrefix& found = *it->second;
  return found.salt == salt && std::ranges::equal(found.ids, ids) ? &found : nullptr;
}

double PrefixStore::worth(const StoredPrefix& prefix) const {
  const double fading = std::exp2(-static_cast<double>(tick_ - prefix.last_tick) / kHalfLife);
  return (static_cast<double>(prefix.making_cost) + prefix.recent) * fading /
         static_cast<double>(std::max<int64_t>(prefix.bytes, 1));
}

std::optional<std::vector<EntryId>> PrefixStore::room_for(int64_t bytes) const {
  if (bytes > budget_) return std::nullopt;
  std::vector<const StoredPrefix*> order;
  for (const StoredPrefix& prefix : entries_) {
    if (prefix.num_users == 0 && !prefix.pinned && prefix.ready) order.push_back(&prefix);
  }
  std::ranges::stable_sort(order, {}, [this](const StoredPrefix* p) { return worth(*p); });
  std::vector<EntryId> victims;
  int64_t left = bytes_;
  for (const StoredPrefix* prefix : order) {
    if (left + bytes <= budget_) break;
    victims.push_back(prefix->entry);
    left -= prefix->bytes;
  }
  if (left + bytes > budget_) return std::nullopt;
  return victims;
}

StoredPrefix& PrefixStore::insert(StoredPrefix prefix) {
  prefix.last_tick = ++tick_;
  bytes_ += prefix.bytes;
  StoredPrefix& stored = entries_.emplace_back(std::move(prefix));
  if (!by_key_.emplace(stored.key, &stored).second) {
    throw Error(ErrorCode::kInternal, "prefix store: the key is taken");
  }
  return stored;
}

void PrefixStore::erase(EntryId entry) {
  const auto it = std::ranges::find(entries_, entry, &StoredPrefix::entry);
  if (it == entries_.end()) throw Error(ErrorCode::kInternal, "prefix store: no such entry");
  bytes_ -= it->bytes;
  if (!it->doomed) by_key_.erase(it->key);
  entries_.erase(it);
}

void PrefixStore::acquire(StoredPrefix& prefix) {
  ++prefix.num_users;
  ++tick_;
}

void PrefixStore::release(StoredPrefix& prefix) {
  --prefix.num_users;
  prefix.used = StoredPrefix::Clock::now();
}

void PrefixStore::count_saved(StoredPrefix& prefix, int64_t saved) {
  prefix.saved += saved;
  const double fading = std::exp2(-static_cast<double>(tick_ - prefix.last_tick) / kHalfLife);
  prefix.recent = prefix.recent * fading + static_cast<double>(saved);
  prefix.last_tick = tick_;
}

void PrefixStore::reserve(int64_t bytes) {
  reserved_ += bytes;
  bytes_ += bytes;
}

std::vector<EntryId> PrefixStore::droppable(bool with_pinned) const {
  std::vector<EntryId> ids;
  for (const StoredPrefix& prefix : entries_) {
    if (prefix.num_users == 0 && prefix.ready && (with_pinned || !prefix.pinned)) {
      ids.push_back(prefix.entry);
    }
  }
  return ids;
}

void PrefixStore::doom_ready() {
  for (StoredPrefix& prefix : entries_) {
    if (prefix.ready) doom(prefix);
  }
}

void PrefixStore::doom(StoredPrefix& prefix) {
  if (prefix.doomed) return;
  prefix.doomed = true;
  by_key_.erase(prefix.key);
}

void PrefixStore::check_integrity() const {
  int64_t held = reserved_;
  size_t num_keys = 0;
  for (const StoredPrefix& prefix : entries_) {
    held += prefix.bytes;
    const auto it = by_key_.find(prefix.key);
    const bool has_key = it != by_key_.end() && it->second == &prefix;
    num_keys += has_key ? 1 : 0;
    if (has_key == prefix.doomed || prefix.num_users < 0) {
      throw Error(ErrorCode::kInternal, "prefix store: an entry's key or users are wrong");
    }
  }
  if (held != bytes_ || reserved_ < 0 || bytes_ > budget_ || by_key_.size() != num_keys) {
    throw Error(ErrorCode::kInternal, "prefix store: holds " + std::to_string(held) +
                                          " bytes, its account says " + std::to_string(bytes_) +
                                          ", the budget is " + std::to_string(budget_));
  }
}

}  // namespace bicached
