#pragma once

#include <list>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "bicached/cache_report.h"
#include "bicached/denoiser.h"
#include "bicached/engine.h"
#include "bicached/settings.h"
#include "cache_index/prefix_store.h"
#include "cache_index/prefix_tree.h"
#include "cache_index/probe_stats.h"
#include "decode/canvas_decoder.h"
#include "decode/probe.h"
#include "engine/forward_part.h"

namespace bicached {

/// An entry that is not shared: positions in one request's context. Counts in `cache_bytes`.
class OwnStates {
 public:
  OwnStates(Denoiser& denoiser, PrefixStore& store, EntryId entry_in, int64_t bytes)
      : entry(entry_in), denoiser_(denoiser), store_(store), bytes_(bytes) {
    store_.reserve(bytes_);
  }
  ~OwnStates() {
    denoiser_.destroy_entry(entry);
    store_.reserve(-bytes_);
  }
  OwnStates(const OwnStates&) = delete;
  OwnStates& operator=(const OwnStates&) = delete;

  const EntryId entry;
  bool has_kv = false;  // K and V were copied, where the entry keeps them

 private:
  Denoiser& denoiser_;
  PrefixStore& store_;
  const int64_t bytes_;
};

/// What one request does with the prefix cache: made when it arrives, empty again when it ends.
struct CacheUse {
  // From arrival on.
  std::string policy;
  std::vector<int> candidates;  // prefix lengths that others may share, ascending

  // From `prepare` on.
  Reuse reuse;
  StoredPrefix* offered = nullptr;  // a ready entry; until `take_up` nobody holds it
  CanvasKind kind;
  PrefixLine line;

  // From `take_up` on.
  SlabId slab = kNoId;
  StoredPrefix* held = nullptr;    // its entry, not dropped before `release`
  std::shared_ptr<OwnStates> own;  // what its refreshes enter from; shared with its probe
  std::weak_ptr<Probe> probe;      // given up when requests need its room

  PrefixStates states() const { return {held ? held->entry : kNoId, own ? own->entry : kNoId}; }
};

/// Whether a request may go on to its first forward.
enum class Readiness { kReady, kWaitsForEntry };

/// Prefix entries of live traffic: which prefixes are shared, when an entry is made, who uses it
/// and how deep, and what probes say of that (DESIGN 6). Engine thread only.
///
/// **When an entry is made, and who waits for it.** Costs are row-layers: rows times the layers
/// they run. Making an entry of P tokens costs P L once; a request that takes it up at depth b
/// saves P b in its first forward. An entry of K/V below layer D costs P D, so it is made as deep
/// as the first request wants it, which saves as much at once; all that follow gain. That is done
/// once `min_uses` prompts had the prefix, and again, deeper, when a request wants that; a probe
/// wants all layers. A request waits for an entry that is being made if it would use it at b > 0 or
/// probe it: making it beside the request's own first forward costs the same, and the request would
/// then run the P b that the entry saves. With b = 0, or a prefix below `min_prefix_len`, nobody
/// waits, and with b = 0 nothing is made.
class PrefixCache {
 public:
  PrefixCache(Denoiser& denoiser, const CacheSettings& settings, EngineStats& stats);
  ~PrefixCache();

  /// Throws kInvalidRequest when the request's policy is not possible here. Any thread.
  void check(const GenerateRequest& request) const;
  /// A request arrives: its prompt counts as a use of all its prefixes.
  CacheUse arrive(const GenerateRequest& request);
  /// Whether its longest stored prefix is in use by others right now.
  bool is_hot(const GenerateRequest& request, const CacheUse& use);
  /// Chooses what the request reuses, and may begin to make an entry. Called before it gets its
  /// slab, again as long as it waits.
  Readiness prepare(const GenerateRequest& request, CacheUse& use);
  /// The request starts on this slab, right after `prepare`.
  void take_up(const GenerateRequest& request, CacheUse& use, SlabId slab);
  /// Before the decoder takes the results of its forward.
  void observe(CacheUse& use, const CanvasDecoder& decoder, std::span<const RowResult> results);
  /// The request has ended or was dropped; `stats` of its decoder, null without one.
  void release(CacheUse& use, const GenerationStats* stats);

  /// Entries to make in the next forward, as far as `max_rows` allow, one at least.
  std::vector<ForwardPart*> making(int max_rows);
  /// Probes for the next forward as far as `max_rows` allow, one at least if `must`.
  std::vector<ForwardPart*> probing(int max_rows, bool must);
  bool has_work() const;

  /// Makes room for requests in the K/V pool: of probes that have ended, else of those that run.
  /// Whether there were any.
  bool make_room();
  /// Records the probes that have ended.
  void sweep();
  /// Drops entries that nobody holds: device memory ran out. How many.
  int drop_unused();

  void pin(std::vector<TokenId> ids);
  int clear(bool forget_probes);
  CacheReport report() const;
  void update_gauges();
  /// Writes the probe outcomes to state_dir, if there is one and something new.
  void save_state();
  bool has_unsaved() const;
  void check_integrity() const;

 private:
  class Making;
  class ProbeRun;

  Reuse choose_inside(const GenerateRequest& request, const CacheUse& use) const;
  void aim_at(const GenerateRequest& request, CacheUse& use, int prefix_len) const;
  int choose_depth(const GenerateRequest& request, const CacheUse& use) const;
  bool teaches(const CacheUse& use);
  int depth_to_make(const GenerateRequest& request, const CacheUse& use, int has);
  std::vector<int> candidates(const GenerateRequest& request, std::span<const PathStep> path) const;
  bool start_probe(const GenerateRequest& request, CacheUse& use);
  StoredPrefix* longest_stored(const GenerateRequest& request, const CacheUse& use);
  int worth_making(const CacheUse& use, std::span<const PathStep> path, int stored) const;
  std::shared_ptr<OwnStates> make_own(const EntrySpec& spec);
  std::optional<EntryId> create_entry(const EntrySpec& spec);
  StoredPrefix* begin_making(const std::string& salt, std::span<const TokenId> ids, int max_depth,
                             bool pinned);
  void end_probe(ProbeRun& run);
  void close(ProbeRun& run);
  void drop_probes();
  bool store_pinned(std::span<const TokenId> ids);
  void let_go(StoredPrefix& stored, int64_t saved);
  void retire(StoredPrefix& stored);
  void destroy(EntryId entry);
  std::string state_file() const;
  void load_state();

  Denoiser& denoiser_;
  const CacheSettings settings_;
  EngineStats& stats_;
  const ModelInfo info_;
  std::optional<DepthTable> table_;
  EntrySpec spec_;  // of the deepest entries but its length
  std::vector<int> depths_;
  PrefixTree tree_;
  PrefixStore store_;
  ProbeStats probe_stats_;
  std::list<std::unique_ptr<Making>> making_;
  std::list<std::unique_ptr<ProbeRun>> probes_;
  std::set<Hash128> failed_;  // prefixes whose forward failed: not tried again
  std::vector<std::vector<TokenId>> pinned_;
  int64_t num_refused_ = 0;  // entries that found no room
  int64_t num_probes_ = 0;   // begun
  int64_t saved_version_ = 0;
};

/// Depths at which an entry can be entered under these settings: a ladder for `measured`, the
/// depths of a table, a fixed one. Ascending, > 0; the number of layers is the last if K and V of
/// all are kept.
std::vector<int> entry_depths(const CacheSettings& settings, const DepthTable* table,
                              int num_layers);

}  // namespace bicached
