#pragma once

#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/lru_map.h"
#include "base/state_file.h"
#include "bicached/cache_report.h"
#include "bicached/denoiser.h"
#include "bicached/engine.h"
#include "bicached/settings.h"
#include "cache_index/depth/depth_table.h"
#include "cache_index/prefix_store.h"
#include "cache_index/reuse_learner.h"
#include "engine/cache_use.h"
#include "engine/entry_making.h"

namespace bicached {

/// Whether a request may go on to its first forward.
enum class Readiness { kReady, kWaitsForEntry };

/// Throws kInvalidSettings for what a model of so many layers can't do. Before the model is loaded,
/// which may take minutes.
void check_cache_settings(const CacheSettings& settings, int num_layers);

/// What requests reuse, of each other and of their own forwards (DESIGN 6). Which prefixes are
/// stored is `PrefixStore`'s, how deep they are reused the policy's, what is probed the learner's;
/// here it comes together. Engine thread only.
///
/// **When an entry is made, and who waits for it.** Costs are row-layers: rows times the layers
/// they run. An entry of P tokens for depth b costs P b and saves the first request that takes it
/// up as much, so a request that would use it at b > 0 has it made, as deep as it wants it, and
/// waits for it: making it beside the request's own first forward would cost the same twice. That
/// is done once `min_uses` prompts had the prefix. Nobody waits for an entry that is made for a
/// probe: a later request is probed.
class PrefixCache {
 public:
  PrefixCache(Denoiser& denoiser, const CacheSettings& settings);

  /// Throws kInvalidRequest when the request's policy or depths are not possible here. Any thread.
  void check(const GenerateRequest& request) const;
  /// A request arrives: its prompt counts as a use of all its prefixes.
  void arrive(const GenerateRequest& request, CacheUse& use);
  /// Whether one of its prefixes is in use by others right now.
  bool is_hot(const GenerateRequest& request, const CacheUse& use);
  /// Chooses what the request reuses, and may begin to make an entry. Called before it gets its
  /// slab, again as long as it waits.
  Readiness prepare(const GenerateRequest& request, CacheUse& use);
  /// The request starts on this slab, right after `prepare`.
  void take_up(const GenerateRequest& request, CacheUse& use, SlabId slab);
  /// Gives up the request's probe to make room; false: there is none.
  bool drop_probe(CacheUse& use);
  /// The request has ended, or (not `is_complete`) was dropped on the way.
  void finish(CacheUse& use, const GenerationStats& stats, bool is_complete);

  /// Entries to make in the next forward, as far as `max_rows` allow, one at least.
  std::vector<ForwardPart*> making(int max_rows);
  bool is_making() const { return !making_.empty(); }

  /// Drops entries that nobody holds: device memory ran out. How many.
  int drop_unused();

  /// Throws kInvalidSettings when an entry can't be begun; else `done` is called, perhaps at once.
  void warm(std::vector<TokenId> ids, bool pinned, EntryMaking::Done done);
  /// Entries that are being made never will be.
  void give_up_making(ErrorCode code, const std::string& why);
  int clear(bool forget_probes);
  /// With the entries worth most, at most so many.
  CacheReport report(int max_entries) const;
  const CacheStats& stats() const { return stats_; }
  /// Writes them the last time: another server may take the state_dir over.
  void close_state();
  /// Writes the probe outcomes to state_dir, if there is one and something new.
  void save_state();
  bool has_unsaved() const;
  void check_integrity() const { store_.check_integrity(); }
  /// Slabs of entries that are being made, and entries that are stored.
  int64_t num_slabs() const;
  int64_t num_entries() const { return static_cast<int64_t>(store_.num_entries()); }

 private:
  const DepthPolicy& find_policy(const std::string& name) const;
  bool is_deterministic(const GenerateRequest& request) const;
  /// Whether blocks attend only backwards: then what is reused is exact.
  bool is_exact() const { return info_.attention_block > 0; }
  int whole_blocks(int length) const;
  void find_candidates(const GenerateRequest& request, CacheUse& use);
  StoredPrefix* stored(const GenerateRequest& request, const CacheUse::Candidate& candidate);
  const CacheUse::Candidate* choose_prefix(const GenerateRequest& request, const CacheUse& use);
  int choose_depth(const GenerateRequest& request, const CacheUse& use,
                   const CacheUse::Candidate& prefix) const;
  void describe(const GenerateRequest& request, const CacheUse::Candidate* prefix, CacheUse& use);
  InsidePlan choose_inside(const GenerateRequest& request, const CacheUse& use) const;
  bool inside_is_given(const GenerateRequest& request) const;
  bool start_probe(const GenerateRequest& request, CacheUse& use);
  void end_probe(CacheUse& use, const GenerationStats& stats, bool is_complete);
  Lease own_states(const Reuse& reuse, int length);
  std::optional<EntryId> create_entry(const EntrySpec& spec);
  StoredPrefix* begin_making(const std::string& salt, std::span<const TokenId> ids,
                             const Hash128& key, int depth, bool pinned);
  StoredPrefix* try_making(const std::string& salt, std::span<const TokenId> ids,
                           const Hash128& key, int depth, bool pinned);
  bool load(const CacheUse& use, SlabId slab);
  void end_making(StoredPrefix& stored, const Error* failure);
  StoredPrefix* store_warm(std::span<const TokenId> ids, bool pinned);
  Lease hold(StoredPrefix& stored);
  void destroy(EntryId entry);
  void update_gauges();
  void load_state();

  Denoiser& denoiser_;
  const CacheSettings settings_;
  const ModelInfo info_;
  CacheStats stats_;
  std::optional<DepthTable> table_;
  const DepthPolicy& policy_;
  std::vector<int> depths_;    // at which entries can be entered, ascending
  LruMap<Hash128, int> uses_;  // of beginnings of recent prompts
  PrefixStore store_;
  ReuseLearner learner_;
  StateFile state_file_;
  bool is_locked_out_ = false;  // of the state file, by another server
  std::list<EntryMaking> making_;
  LruMap<Hash128, bool> failed_;  // prefixes whose forward failed: not tried again
  std::vector<std::vector<TokenId>> pinned_;
  int64_t num_refused_ = 0;  // entries that found no room
  int64_t probes_running_ = 0;
  int64_t saved_version_ = 0;
};

}  // namespace bicached
