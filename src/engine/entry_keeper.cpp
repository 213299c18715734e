#include "engine/entry_keeper.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/log.h"
#include "bicached/error.h"

namespace bicached {
namespace {

/// Prefixes whose forward failed that are remembered.
constexpr size_t kMaxFailed = 1000;

std::string megabytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MB", static_cast<double>(bytes) * 1e-6);
  return text;
}

std::string name_of(const StoredPrefix& stored) {
  return "prefix " + stored.key.hex().substr(0, 8);
}

double seconds_since(StoredPrefix::Clock::time_point then) {
  return std::chrono::duration<double>(StoredPrefix::Clock::now() - then).count();
}

}  // namespace

EntryKeeper::EntryKeeper(Denoiser& denoiser, int64_t budget_bytes, std::vector<int> depths,
                         CacheStats& stats)
    : denoiser_(denoiser),
      info_(denoiser.info()),
      depths_(std::move(depths)),
      stats_(stats),
      store_(budget_bytes, info_.fingerprint),
      failed_(kMaxFailed) {
  update_gauges();
}

int EntryKeeper::whole_blocks(int length) const {
  const int block = info_.attention_block;
  return block > 0 ? length / block * block : length;
}

StoredPrefix* EntryKeeper::find(const std::string& salt, std::span<const TokenId> ids,
                                const Hash128& key) {
  if (StoredPrefix* own = store_.find(key, salt, ids)) return own;
  // What is pinned is the operator's, and there for every salt.
  if (salt.empty() || pinned_.empty()) return nullptr;
  StoredPrefix* pinned = store_.find(store_.key_of("", ids), "", ids);
  return pinned && pinned->pinned ? pinned : nullptr;
}

// --- How they come to be -----------------------------------------------------------------------

/// Within the budget; others may go for it. Nothing: there is no room, or it can't be made.
std::optional<EntryId> EntryKeeper::create(const EntrySpec& spec) {
  const auto victims = store_.room_for(denoiser_.entry_bytes(spec));
  if (!victims) return std::nullopt;
  stats_.evictions += drop(*victims);
  try {
    return denoiser_.create_entry(spec);
  } catch (const std::exception& error) {
    // What an entry would have spared is computed instead.
    log_warn(std::string("an entry can't be made: ") + error.what());
    drop_unused();
    return std::nullopt;
  }
}

StoredPrefix* EntryKeeper::begin_making(const std::string& salt, std::span<const TokenId> ids,
                                        const Hash128& key, int depth, bool pinned) {
  try {
    return try_making(salt, ids, key, depth, pinned);
  } catch (const std::exception& error) {
    log_warn(std::string("an entry can't be begun: ") + error.what());
    ++num_refused_;
    return nullptr;
  }
}

StoredPrefix* EntryKeeper::try_making(const std::string& salt, std::span<const TokenId> ids,
                                      const Hash128& key, int depth, bool pinned) {
  const StoredPrefix* old = store_.find(key, salt, ids);
  const bool key_is_taken = old ? !old->ready : store_.has_key(key);
  if (depths_.empty() || failed_.contains(key) || key_is_taken) return nullptr;
  StoredPrefix prefix;
  prefix.key = key;
  prefix.spec.prefix_len = static_cast<int>(ids.size());
  prefix.spec.max_depth = depth;
  prefix.spec.boundaries = depths_;
  std::erase_if(prefix.spec.boundaries,
                [&](int boundary) { return boundary > depth || boundary == info_.num_layers; });
  prefix.bytes = denoiser_.entry_bytes(prefix.spec);
  prefix.salt = salt;
  prefix.ids.assign(ids.begin(), ids.end());
  prefix.making_cost = static_cast<int64_t>(ids.size()) * depth;
  prefix.pinned = pinned;
  Lease slab = lease_slab(denoiser_, prefix.spec.prefix_len);
  const std::optional<EntryId> entry = slab ? create(prefix.spec) : std::nullopt;
  if (!entry) {
    ++num_refused_;
    return nullptr;
  }
  bool is_stored = false;
  Lease unfinished(*entry, [this, &is_stored](EntryId id) {
    is_stored ? destroy(id) : denoiser_.destroy_entry(id);
  });
  // Looked up again: it may have gone to make room.
  if (StoredPrefix* shallower = store_.find(key, salt, ids)) {
    store_.doom(*shallower);
    if (shallower->num_users == 0) destroy(shallower->entry);
  }
  prefix.entry = *entry;
  prefix.made = prefix.used = StoredPrefix::Clock::now();
  StoredPrefix& stored = store_.insert(std::move(prefix));
  is_stored = true;
  std::list<EntryMaking> making;
  making.emplace_back(denoiser_, stored, std::move(slab))
      .when_done([this, &stored](const Error* failure) { end_making(stored, failure); });
  making_.splice(making_.end(), making);
  unfinished.keep();
  return &stored;
}

void EntryKeeper::end_making(StoredPrefix& stored, const Error* failure) {
  stored.ready = failure == nullptr;  // first: who waits for it must not wait for ever
  stats_.made += failure ? 0 : 1;
  contain("an entry's end could not be noted", [&] {
    const std::string name = name_of(stored);
    if (failure) {
      log_warn(name + " can't be stored: " + failure->what());
      failed_.touch(stored.key);
      return;
    }
    log_info(name + " stored: " + std::to_string(stored.spec.prefix_len) + " tokens, " +
             megabytes(stored.bytes) + "; the cache holds " + std::to_string(store_.num_entries()) +
             " prefixes, " + megabytes(store_.bytes()) + " of " + megabytes(store_.budget_bytes()));
  });
  if (failure) destroy(stored.entry);
}

std::vector<ForwardPart*> EntryKeeper::making(int max_rows) {
  std::erase_if(making_, [](const EntryMaking& making) { return making.is_done(); });
  // Some may be gone: the cache was cleared, or a forward failed.
  for (const std::vector<TokenId>& ids : pinned_) store_warm(ids, true);
  std::vector<ForwardPart*> parts;
  for (EntryMaking& making : making_) {
    max_rows -= making.num_rows();
    if (max_rows < 0 && !parts.empty()) break;
    parts.push_back(&making);
  }
  update_gauges();
  return parts;
}

/// Stored now, or being made. Null: neither, and it can't be.
StoredPrefix* EntryKeeper::store_warm(std::span<const TokenId> ids, bool pinned) {
  const Hash128 key = store_.key_of("", ids);
  StoredPrefix* stored = store_.find(key, "", ids);
  if (!stored) return begin_making("", ids, key, depths_.empty() ? 0 : depths_.back(), pinned);
  stored->pinned |= pinned;
  return stored;
}

void EntryKeeper::warm(std::vector<TokenId> ids, bool pinned, EntryMaking::Done done) {
  const std::string tokens = std::to_string(ids.size()) + " tokens";
  const auto refuse = [&](const std::string& why) {
    throw Error(ErrorCode::kInvalidSettings, "a prefix of " + tokens + " can't be stored: " + why);
  };
  ids.resize(static_cast<size_t>(whole_blocks(static_cast<int>(ids.size()))));
  if (ids.empty()) {
    refuse("a block of this model has " + std::to_string(info_.attention_block));
  }
  if (depths_.empty()) refuse("the cache policy stores nothing");
  StoredPrefix* stored = store_warm(ids, pinned);
  if (stored && stored->ready && stored->spec.max_depth < depths_.back()) {
    // What requests had made for themselves is only as deep as they went.
    StoredPrefix* deeper = begin_making("", ids, stored->key, depths_.back(), stored->pinned);
    stored = deeper ? deeper : store_warm(ids, pinned);
  }
  if (!stored) {
    refuse("it finds no room; cache_bytes is " + std::to_string(store_.budget_bytes()) +
           ", of which " + std::to_string(store_.bytes()) + " are used");
  }
  if (pinned) pinned_.push_back(std::move(ids));
  const auto making =
      std::ranges::find_if(making_, [&](const EntryMaking& m) { return m.makes(*stored); });
  if (making != making_.end()) {
    making->when_done(std::move(done));
  } else {
    done(nullptr);
  }
}

void EntryKeeper::give_up_making(ErrorCode code, std::string_view why) noexcept {
  contain("prefixes that were made", [&] {
    for (EntryMaking& making : making_) {
      if (!making.is_done()) making.fail(code, std::string(why));
    }
  });
}

// --- Who has them ------------------------------------------------------------------------------

Lease EntryKeeper::hold(StoredPrefix& stored) {
  store_.acquire(stored);
  return {stored.entry, [this, &stored](EntryId entry) {
            store_.release(stored);
            if (stored.doomed && stored.num_users == 0) destroy(entry);
          }};
}

bool EntryKeeper::load(StoredPrefix& stored, SlabId slab, int depth) {
  try {
    denoiser_.load_entry(stored.entry, slab, depth);
    return true;
  } catch (const std::exception& error) {
    log_warn(name_of(stored) + " can't be taken up: " + error.what());
    failed_.touch(stored.key);
    store_.doom(stored);
    return false;
  }
}

Lease EntryKeeper::own_states(const Reuse& reuse, int length) {
  const EntrySpec spec{reuse.own_states(length, info_.num_layers), 0, {reuse.refresh_depth}};
  const std::optional<EntryId> entry = create(spec);
  if (!entry) return {};
  const int64_t bytes = denoiser_.entry_bytes(spec);
  store_.reserve(bytes);
  return {*entry, [this, bytes](EntryId id) {
            denoiser_.destroy_entry(id);
            store_.reserve(-bytes);
          }};
}

// --- How they go -------------------------------------------------------------------------------

void EntryKeeper::destroy(EntryId entry) {
  store_.erase(entry);
  denoiser_.destroy_entry(entry);
}

int EntryKeeper::drop(const std::vector<EntryId>& entries) {
  for (const EntryId entry : entries) destroy(entry);
  return static_cast<int>(entries.size());
}

int EntryKeeper::drop_unused() {
  const int dropped = drop(store_.droppable(false));
  stats_.evictions += dropped;
  return dropped;
}

int EntryKeeper::clear() {
  failed_.clear();
  const int dropped = drop(store_.droppable(true));
  store_.doom_ready();
  for (const std::vector<TokenId>& ids : pinned_) store_warm(ids, true);
  return dropped;
}

// --- What is seen of them ----------------------------------------------------------------------

EntryReport EntryKeeper::describe(const StoredPrefix& stored) const {
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
  return entry;
}

void EntryKeeper::update_gauges() {
  stats_.entries = static_cast<int64_t>(store_.num_entries());
  stats_.bytes = store_.bytes();
  stats_.budget_bytes = store_.budget_bytes();
}

int64_t EntryKeeper::num_slabs() const {
  return std::ranges::count_if(making_,
                               [](const EntryMaking& making) { return !making.is_done(); });
}

}  // namespace bicached
