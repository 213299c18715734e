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

/// What one request does with the prefix cache: made when it arrives, empty again when it ends.
struct CacheUse {
  // From arrival on.
  std::string policy;
  std::vector<int> candidates;  // prefix lengths that others may share, ascending

  // From `prepare` on.
  PrefixReuse reuse;
  StoredPrefix* offered = nullptr;  // a ready entry; until `take_up` nobody holds it
  CanvasKind kind;
  PrefixLine line;

  // From `take_up` on.
  StoredPrefix* held = nullptr;  // its entry, not dropped before `release`
  std::weak_ptr<Probe> probe;    // given up when requests need its room
};

/// Whether a request may go on to its first forward.
enum class Readiness { kReady, kWaitsForEntry };

/// Prefix entries of live traffic: which prefixes are shared, when an entry is made, who uses it
/// and how deep, and what probes say of that (DESIGN 6). Engine thread only.
///
/// **When an entry is made, and who waits for it.** Costs are row-layers: rows times the layers
/// they run. Making an entry of P tokens costs P L once; a request that takes it up at depth b
/// saves P b at every refresh. A prefix that `min_uses` prompts had is expected to come again, so
/// its entry is made, once. A request waits for an entry that is being made if it would use it at b
/// > 0: making it beside the request's own first forward costs the same P L, and the request would
/// then run the P b that the entry saves. With b = 0, or a prefix below `min_prefix_len`, nobody
/// waits.
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

  /// Entries to make in the next forward.
  std::vector<ForwardPart*> making();
  /// Probes for the next forward as far as `max_rows` allow, one at least if `must`.
  std::vector<ForwardPart*> probing(int max_rows, bool must);
  bool has_work() const;

  /// Gives up probes, so that requests find room in the K/V pool. Whether there were any.
  bool drop_probes();
  /// Drops entries that nobody holds: device memory ran out. How many.
  int drop_unused();

  void pin(std::vector<TokenId> ids);
  int clear(bool forget_probes);
  CacheReport report() const;
  void update_gauges();
  /// Writes the probe outcomes to state_dir, if there is one and something new.
  void save_state();
  void check_integrity() const;

 private:
  class Making;
  class ProbeRun;

  int choose_depth(const GenerateRequest& request, const CacheUse& use) const;
  void choose_refresh(const GenerateRequest& request, CacheUse& use) const;
  std::vector<int> candidates(const GenerateRequest& request, std::span<const PathStep> path) const;
  bool start_probe(const GenerateRequest& request, CacheUse& use);
  StoredPrefix* longest_stored(const GenerateRequest& request, const CacheUse& use);
  int worth_making(const CacheUse& use, std::span<const PathStep> path, int stored) const;
  StoredPrefix* begin_making(const std::string& salt, std::span<const TokenId> ids, bool pinned);
  void end_probe(ProbeRun& run);
  void sweep();
  void let_go(StoredPrefix& stored, int64_t saved);
  void destroy(EntryId entry);
  std::string state_file() const;
  void load_state();

  Denoiser& denoiser_;
  const CacheSettings settings_;
  EngineStats& stats_;
  const ModelInfo info_;
  std::optional<DepthTable> table_;
  EntrySpec spec_;  // of every entry but its length
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
