#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/lru_map.h"
#include "bicached/cache_report.h"
#include "bicached/denoiser.h"
#include "bicached/engine.h"
#include "bicached/settings.h"
#include "cache_index/depth/depth_table.h"
#include "cache_index/reuse_learner.h"
#include "engine/cache_use.h"
#include "engine/entry_keeper.h"
#include "engine/outcomes_file.h"

namespace bicached {

/// Whether a request may go on to its first forward.
enum class Readiness { kReady, kWaitsForEntry };

/// Throws kInvalidSettings for what a model of so many layers can't do. Before the model is loaded,
/// which may take minutes.
void check_cache_settings(const CacheSettings& settings, int num_layers);

/// What requests reuse, of each other and of their own forwards (DESIGN 6). What is stored is
/// the `EntryKeeper`'s, how deep it is reused the policy's, what is probed the learner's; here it
/// comes together. Engine thread only.
///
/// **When an entry is made, and who waits for it.** Costs are row-layers: rows times the layers
/// they run. An entry of P tokens for depth b costs P b and saves the first request that takes it
/// up as much, so a request that would use it at b > 0 has it made, as deep as it wants it, and
/// waits for it: making it beside the request's own first forward would cost the same twice. That
/// is done once `min_uses` prompts had the prefix. Nobody waits for an entry that is made for a
/// probe, a later request is probed; unless it takes the place of one that is reused already.
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
  /// The results of the probe's rows, those of the request's rows, and what the request decided by
  /// them. A difference counts at once, whatever becomes of the request.
  void advance_probe(CacheUse& use, std::span<const RowResult> results,
                     std::span<const RowResult> of_request, const std::vector<Commit>& commits);
  /// Gives up the request's probe to make room; false: there is none that takes any.
  bool drop_probe(CacheUse& use);
  /// The request has ended, or (not `is_complete`) was dropped on the way.
  void finish(CacheUse& use, const GenerationStats& stats, bool is_complete);

  /// Forgets which prompts there were and drops all entries; with `forget_probes` also what probes
  /// found. How many entries went.
  int clear(bool forget_probes);
  /// With the entries worth most, at most so many.
  CacheReport report(int max_entries) const;
  const CacheStats& stats() const { return stats_; }
  EntryKeeper& entries() { return entries_; }
  OutcomesFile& outcomes_file() { return outcomes_file_; }

 private:
  const DepthPolicy& find_policy(const std::string& name) const;
  bool is_deterministic(const GenerateRequest& request) const;
  /// Whether blocks attend only backwards: then what is reused is exact.
  bool is_exact() const { return info_.attention_block > 0; }
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

  Denoiser& denoiser_;
  const CacheSettings settings_;
  const ModelInfo info_;
  CacheStats stats_;
  std::optional<DepthTable> table_;
  const DepthPolicy& policy_;
  LruMap<Hash128, int> uses_;  // of beginnings of recent prompts
  EntryKeeper entries_;
  ReuseLearner learner_;
  OutcomesFile outcomes_file_;
  int64_t probes_running_ = 0;
};

}  // namespace bicached
