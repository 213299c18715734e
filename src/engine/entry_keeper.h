#pragma once

#include <list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/lru_map.h"
#include "bicached/cache_report.h"
#include "bicached/denoiser.h"
#include "bicached/engine.h"
#include "cache_index/prefix_store.h"
#include "decode/leases.h"
#include "decode/planner.h"
#include "engine/entry_making.h"

namespace bicached {

/// What the device keeps of prefixes: entries are made by forwards, held by leases, and dropped for
/// others within the budget. Whether one is worth it is the caller's to say. Engine thread only.
///
/// Trouble with an entry costs what it would have spared: it is logged and computed instead.
class EntryKeeper {
 public:
  /// `depths`: at which entries can be entered, ascending. All but these outlives it.
  EntryKeeper(Denoiser& denoiser, int64_t budget_bytes, std::vector<int> depths, CacheStats& stats);

  const std::vector<int>& depths() const { return depths_; }
  /// The account of them.
  const PrefixStore& store() const { return store_; }
  /// Of a beginning, what can be reused: all, or what is whole blocks.
  int whole_blocks(int length) const;
  /// The entry of these ids, made or being made, of this salt or pinned; null: none.
  StoredPrefix* find(const std::string& salt, std::span<const TokenId> ids, const Hash128& key);

  /// Begins to make one, in place of a shallower one. Null: there is no room, it is being made, its
  /// forward failed before, or the device can't do it.
  StoredPrefix* begin_making(const std::string& salt, std::span<const TokenId> ids,
                             const Hash128& key, int depth, bool pinned = false);
  /// Entries to make in the next forward, as far as `max_rows` allow, one at least.
  std::vector<ForwardPart*> making(int max_rows);
  bool is_making() const { return !making_.empty(); }
  /// Entries that are being made never will be.
  void give_up_making(ErrorCode code, std::string_view why) noexcept;
  /// Throws kInvalidSettings when an entry can't be begun; else `done` is called, perhaps at once.
  void warm(std::vector<TokenId> ids, bool pinned, EntryMaking::Done done);

  /// It is not dropped meanwhile.
  Lease hold(StoredPrefix& stored);
  /// Its leading layers into the slab, for who holds it. False: it can't be, and nobody takes the
  /// entry up any more.
  bool load(StoredPrefix& stored, SlabId slab, int depth);
  /// Hidden states that a canvas of this length leaves for its own refreshes; they count in the
  /// budget. Empty: there is no room.
  Lease own_states(const Reuse& reuse, int length);
  /// Row-layers that a use of it did not run.
  void count_saved(StoredPrefix& stored, int64_t saved) { store_.count_saved(stored, saved); }

  /// Drops what nobody holds and is not pinned: device memory ran out. How many.
  int drop_unused();
  /// Drops all; what is held goes with its last user, and what is pinned is made anew. How many
  /// went.
  int clear();

  EntryReport describe(const StoredPrefix& stored) const;
  /// Entries that found no room.
  int64_t num_refused() const { return num_refused_; }
  void update_gauges();
  /// Of entries that are being made.
  int64_t num_slabs() const;

 private:
  std::optional<EntryId> create(const EntrySpec& spec);
  StoredPrefix* try_making(const std::string& salt, std::span<const TokenId> ids,
                           const Hash128& key, int depth, bool pinned);
  void end_making(StoredPrefix& stored, const Error* failure);
  StoredPrefix* store_warm(std::span<const TokenId> ids, bool pinned);
  void destroy(EntryId entry);
  int drop(const std::vector<EntryId>& entries);

  Denoiser& denoiser_;
  const ModelInfo info_;
  const std::vector<int> depths_;
  CacheStats& stats_;
  PrefixStore store_;
  std::list<EntryMaking> making_;
  LruMap<Hash128, bool> failed_;  // prefixes whose forward failed: not tried again
  std::vector<std::vector<TokenId>> pinned_;
  int64_t num_refused_ = 0;
};

}  // namespace bicached
