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

/// Binary logarithm of what it is worth per byte, as all will be seen at tick 0: savings fade at
/// one rate, so that the order changes only where something is saved.
double PrefixStore::worth(const StoredPrefix& prefix) const {
  const double saves = static_cast<double>(prefix.making_cost) + prefix.recent;
  return std::log2(saves / static_cast<double>(std::max<int64_t>(prefix.bytes, 1))) +
         static_cast<double>(prefix.last_tick) / kHalfLife;
}

std::optional<std::vector<EntryId>> PrefixStore::room_for(int64_t bytes) const {
  if (bytes > budget_) return std::nullopt;
  std::vector<EntryId> victims;
  int64_t left = bytes_;
  for (auto it = by_worth_.begin(); left + bytes > budget_; ++it) {
    if (it == by_worth_.end()) return std::nullopt;
    const StoredPrefix& prefix = entries_.at(it->second);
    if (!is_droppable(prefix)) continue;
    victims.push_back(prefix.entry);
    left -= prefix.bytes;
  }
  return victims;
}

std::vector<const StoredPrefix*> PrefixStore::most_worth(size_t max_entries) const {
  std::vector<const StoredPrefix*> most;
  for (auto it = by_worth_.rbegin(); it != by_worth_.rend() && most.size() < max_entries; ++it) {
    most.push_back(&entries_.at(it->second));
  }
  return most;
}

StoredPrefix& PrefixStore::insert(StoredPrefix prefix) {
  if (by_key_.contains(prefix.key) || entries_.contains(prefix.entry)) {
    throw Error(ErrorCode::kInternal, "prefix store: the key is taken");
  }
  prefix.last_tick = ++tick_;
  prefix.worth = worth(prefix);
  const EntryId entry = prefix.entry;
  const auto placed = entries_.emplace(entry, std::move(prefix)).first;
  StoredPrefix& stored = placed->second;
  try {
    by_key_.emplace(stored.key, &stored);
    by_worth_.emplace(stored.worth, entry);
  } catch (const std::exception&) {  // no memory: it is in all of them, or in none
    by_key_.erase(stored.key);
    entries_.erase(placed);
    throw;
  }
  bytes_ += stored.bytes;
  return stored;
}

void PrefixStore::erase(EntryId entry) {
  const auto it = entries_.find(entry);
  if (it == entries_.end()) throw Error(ErrorCode::kInternal, "prefix store: no such entry");
  const StoredPrefix& prefix = it->second;
  bytes_ -= prefix.bytes;
  by_worth_.erase({prefix.worth, entry});
  if (!prefix.doomed) by_key_.erase(prefix.key);
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
  auto place = by_worth_.extract({prefix.worth, prefix.entry});
  prefix.worth = worth(prefix);
  place.value() = {prefix.worth, prefix.entry};
  by_worth_.insert(std::move(place));
}

void PrefixStore::reserve(int64_t bytes) {
  reserved_ += bytes;
  bytes_ += bytes;
}

std::vector<EntryId> PrefixStore::droppable(bool with_pinned) const {
  std::vector<EntryId> ids;
  for (const auto& [entry, prefix] : entries_) {
    if (prefix.num_users == 0 && prefix.ready && (with_pinned || !prefix.pinned)) {
      ids.push_back(entry);
    }
  }
  return ids;
}

void PrefixStore::doom_ready() {
  for (auto& [entry, prefix] : entries_) {
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
  for (const auto& [entry, prefix] : entries_) {
    held += prefix.bytes;
    const auto it = by_key_.find(prefix.key);
    const bool has_key = it != by_key_.end() && it->second == &prefix;
    num_keys += has_key ? 1 : 0;
    if (has_key == prefix.doomed || prefix.num_users < 0 || prefix.entry != entry ||
        !by_worth_.contains({prefix.worth, entry})) {
      throw Error(ErrorCode::kInternal, "prefix store: an entry's key, place or users are wrong");
    }
  }
  if (held != bytes_ || reserved_ < 0 || bytes_ > budget_ || by_key_.size() != num_keys ||
      by_worth_.size() != entries_.size()) {
    throw Error(ErrorCode::kInternal, "prefix store: holds " + std::to_string(held) +
                                          " bytes, its account says " + std::to_string(bytes_) +
                                          ", the budget is " + std::to_string(budget_));
  }
}

}  // namespace bicached
