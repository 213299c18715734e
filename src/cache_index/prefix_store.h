#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "bicached/denoiser.h"

namespace bicached {

/// The account of one stored prefix; its tensors belong to the Denoiser.
struct StoredPrefix {
  using Clock = std::chrono::steady_clock;

  Hash128 key;
  std::string salt;
  std::vector<TokenId> ids;
  EntryId entry = kNoId;
  EntrySpec spec;
  int64_t bytes = 0;
  int64_t making_cost = 0;  // row-layers to make it again
  bool ready = false;       // its forward has run
  bool pinned = false;      // never dropped
  bool doomed = false;      // goes with its last user; nobody takes it up any more
  int num_users = 0;        // requests and probes that hold it; not dropped while there are any
  int64_t hits = 0;
  int64_t saved = 0;  // row-layers not run thanks to it
  double recent = 0;  // the same, fading
  uint64_t last_tick = 0;
  double worth = 0;  // what PrefixStore orders them by
  Clock::time_point made{}, used{};
};

/// Which prefixes are stored, within a byte budget. Numbers only; engine thread only.
///
/// Key: hash of model fingerprint, salt and ids; the ids are compared on every look-up, so a
/// collision is a miss. Dropped first: what saved least work per byte lately (with what it would
/// cost to make again), among those that nobody holds and that are not pinned. What is done for a
/// request takes a time that grows with the logarithm of their number.
class PrefixStore {
 public:
  PrefixStore(int64_t budget_bytes, std::string fingerprint)
      : budget_(budget_bytes), fingerprint_(std::move(fingerprint)) {}

  Hash128 key_of(const std::string& salt, std::span<const TokenId> ids) const;
  /// The keys of the first `length` ids for each of these lengths, ascending.
  std::vector<Hash128> keys_of(const std::string& salt, std::span<const TokenId> ids,
                               std::span<const int> lengths) const;
  /// The entry of exactly these ids, made or being made; null: none. `key`: as `key_of` says.
  StoredPrefix* find(const Hash128& key, const std::string& salt, std::span<const TokenId> ids);

  /// What has to go so that `bytes` more fit, worst first; nothing is changed. Nothing: it can't
  /// fit now (or never).
  std::optional<std::vector<EntryId>> room_for(int64_t bytes) const;
  /// Whether there is an entry of this key, be it of other ids.
  bool has_key(const Hash128& key) const { return by_key_.contains(key); }
  StoredPrefix& insert(StoredPrefix prefix);
  void erase(EntryId entry);

  void acquire(StoredPrefix& prefix);
  void release(StoredPrefix& prefix);
  /// Row-layers that a use of it did not run.
  void count_saved(StoredPrefix& prefix, int64_t saved);

  /// States that are not shared count too: negative gives them back.
  void reserve(int64_t bytes);

  /// Entries that may be dropped now: not held; pinned ones only if `with_pinned`.
  std::vector<EntryId> droppable(bool with_pinned) const;

  /// Nobody takes it up any more: it goes with its last user, and its key is free.
  void doom(StoredPrefix& prefix);
  /// All that is ready.
  void doom_ready();

  size_t num_entries() const { return entries_.size(); }
  /// Those worth most, the first of them first; at most so many.
  std::vector<const StoredPrefix*> most_worth(size_t max_entries) const;
  /// Of entries and what is reserved.
  int64_t bytes() const { return bytes_; }
  int64_t budget_bytes() const { return budget_; }
  /// Throws kInternal when the accounts don't add up or are over the budget.
  void check_integrity() const;

 private:
  double worth(const StoredPrefix& prefix) const;
  static bool is_droppable(const StoredPrefix& prefix) {
    return prefix.num_users == 0 && !prefix.pinned && prefix.ready;
  }

  const int64_t budget_;
  const std::string fingerprint_;
  std::map<EntryId, StoredPrefix> entries_;        // addresses stay
  std::map<Hash128, StoredPrefix*> by_key_;        // not those doomed
  std::set<std::pair<double, EntryId>> by_worth_;  // all
  int64_t bytes_ = 0;
  int64_t reserved_ = 0;  // part of bytes_
  uint64_t tick_ = 0;     // uses: the clock by which savings fade
};

}  // namespace bicached
