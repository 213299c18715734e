#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "bicached/cache_report.h"
#include "bicached/channel.h"
#include "bicached/denoiser.h"
#include "bicached/request.h"
#include "bicached/settings.h"

namespace bicached {

/// Numbers an operator watches. Counters grow for ever; gauges are the state after the last
/// forward. Written by the engine thread, read by any.
struct EngineStats {
  // gauges
  std::atomic<int64_t> running{0}, queued{0}, slab_tokens_used{0}, slab_tokens_capacity{0};
  // counters
  std::atomic<int64_t> forwards{0}, rows{0}, row_layers{0}, logit_rows{0};
  std::atomic<int64_t> tokens_committed{0}, prompt_tokens{0}, completion_tokens{0};
  std::atomic<int64_t> refreshes{0}, cancelled{0}, failed_steps{0};
  std::atomic<int64_t> busy_us{0};  // time in forwards
};

/// The same of the prefix cache.
struct CacheStats {
  // gauges
  std::atomic<int64_t> entries{0}, bytes{0}, budget_bytes{0};
  // counters
  std::atomic<int64_t> hits{0}, misses{0}, made{0}, evictions{0};
  std::atomic<int64_t> cached_tokens{0}, saved_row_layers{0};
  /// Requests probed to the end, and those whose probe decided otherwise.
  std::atomic<int64_t> probes{0}, probe_disagreements{0};
  std::atomic<int64_t> probe_checks{0};      // decisions compared
  std::atomic<int64_t> probe_row_layers{0};  // run by probes, beside the requests themselves
};

/// The client's end of a submitted job. Destroying it cancels what is still running: the canvases
/// take no part in the next forward. One thread.
class ResponseStream {
 public:
  struct Shared;
  explicit ResponseStream(std::shared_ptr<Shared> shared);
  ~ResponseStream();
  ResponseStream(ResponseStream&&) noexcept = default;
  ResponseStream& operator=(ResponseStream&&) = delete;

  /// The next update, waiting for it. Nothing: every canvas has had its last update.
  std::optional<GenerationUpdate> next();
  /// As `next`, until `deadline`; nothing also when it passed (then `is_done()` is false).
  std::optional<GenerationUpdate> next_until(std::chrono::steady_clock::time_point deadline);
  bool is_done() const;
  /// Stops one canvas (a stop string was found); the others go on.
  void cancel(int index);

 private:
  std::shared_ptr<Shared> shared_;
};

/// Decodes requests with continuous batching on a thread of its own.
///
/// Any thread may call `submit`, `begin_drain`, `stats`. The loop: take new requests, plan,
/// forward, commit, publish. It never sleeps while there is work and never spins while there is
/// none.
class Engine {
 public:
  /// Takes over the denoiser; it is used only on the engine's thread from `start()` on.
  Engine(std::unique_ptr<Denoiser> denoiser, const EngineSettings& settings,
         const CacheSettings& cache_settings);
  ~Engine();  // as stop()

  /// `on_failure` is called once, on the engine's thread, when the device can't be used any more:
  /// what was accepted has got kDeviceFailed, nothing new is, and the process should end.
  void start(std::function<void()> on_failure = {});

  /// Queues a job of one or more canvases (`n`, several prompts), all or none. Throws
  /// kQueueFull, kDraining, kDeviceFailed, or kInvalidRequest when a canvas could never fit.
  ResponseStream submit(std::vector<GenerateRequest> canvases);

  /// New submits throw kDraining from now on; what was accepted goes on.
  void begin_drain();
  /// Also after the device failed.
  bool is_draining() const;
  bool has_failed() const;
  /// The device works, as far as is known. False while it fails everything, and for good after it
  /// was given up: then `has_failed`.
  bool is_ready() const;
  /// Drains until nothing is left or `timeout` passes; the rest gets an error update. Ends the
  /// thread.
  void stop(std::chrono::milliseconds drain_timeout);

  /// Warms the cache: an entry of this prefix, as deep as any request may take up, is made beside
  /// the next forwards, unless it is there. A pinned one is kept from now on, and made anew when it
  /// was lost. The future is ready when requests can take it up, or throws why it can't be made.
  /// Throws kInvalidSettings when it doesn't fit the budget. This and the next two only after
  /// `start`.
  std::future<void> warm_prefix(std::vector<TokenId> ids, bool pinned = false);
  /// The prefix cache as it stands, with the entries worth most, at most so many; the engine stops
  /// for them, some us each. Waits for the forward that runs. Throws kDraining when the engine has
  /// stopped.
  CacheReport cache_report(int max_entries = kMaxListedEntries);
  /// Drops every entry that no request holds (the others go with their last one) and all that is
  /// known of recent prompts; pinned prefixes are made anew. Returns how many entries. Probe
  /// outcomes are kept, or forgotten too with `forget_probes`. Throws kDraining.
  int clear_cache(bool forget_probes = false);

  const EngineStats& stats() const;
  const CacheStats& cache_stats() const;
  const ModelInfo& model() const;
  /// The most tokens that a canvas of this request may have, whatever its lengths say.
  int64_t longest_canvas(const GenerateRequest& request) const;
  /// A guess of when a queue place is free, seconds, at least 1: for Retry-After.
  int retry_after_s() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bicached
