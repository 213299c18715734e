#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bicached/engine.h"
#include "decode/canvas_decoder.h"
#include "decode/leases.h"
#include "engine/cache_use.h"

namespace bicached {

/// What client and engine share of a job: updates one way, cancellation the other.
struct ResponseStream::Shared {
  Shared(size_t num_canvases, size_t max_updates)
      : updates(max_updates), cancelled(num_canvases), num_open(static_cast<int>(num_canvases)) {}

  /// An update was lost: a text with a gap would be worse than none.
  void break_off() noexcept {
    for (std::atomic<bool>& one : cancelled) one = true;
    updates.close();
  }

  Channel<GenerationUpdate> updates;
  std::vector<std::atomic<bool>> cancelled;  // by canvas
  int num_open;                              // canvases without a last update; engine thread only
};

/// A canvas's part of the number of those that wait, until it is placed or ends.
class QueuePlace {
 public:
  QueuePlace() = default;
  /// It is in that number already.
  explicit QueuePlace(std::atomic<int64_t>& queued) : queued_(&queued) {}
  ~QueuePlace() { leave(); }
  QueuePlace(QueuePlace&& other) noexcept : queued_(std::exchange(other.queued_, nullptr)) {}
  QueuePlace& operator=(QueuePlace&& other) noexcept {
    leave();
    queued_ = std::exchange(other.queued_, nullptr);
    return *this;
  }
  void leave() noexcept {
    if (queued_) --*std::exchange(queued_, nullptr);
  }

 private:
  std::atomic<int64_t>* queued_ = nullptr;
};

/// One canvas from submit to its last update. Owned by the scheduler from the moment the engine
/// takes it out of the channel; engine thread only.
struct Sequence {
  using Clock = std::chrono::steady_clock;

  Sequence() = default;
  Sequence(const Sequence&) = delete;
  ~Sequence() { leave(); }

  GenerateRequest request;  // the decoder refers to it: a Sequence never moves
  int index = 0;            // in its job
  std::shared_ptr<ResponseStream::Shared> stream;
  QueuePlace place;
  Clock::time_point submitted;
  CacheUse cache;

  // From admission on.
  std::optional<CanvasDecoder> decoder;
  Lease slab;
  Lease guide_slab;  // of the canvas without the prompt (cfg_scale)
  Clock::time_point admitted;
  Clock::time_point last_forward;  // or admission: what ageing counts from
  int64_t first_token_us = 0;

  int num_tokens() const { return request.longest_canvas(); }
  /// Sends no more updates; the last of a job ends its stream. However a sequence goes, nobody
  /// waits for it.
  void leave() noexcept {
    const auto left = std::exchange(stream, nullptr);
    if (left && --left->num_open == 0) left->updates.close();
  }
  /// Gives back what it holds.
  void release() noexcept {
    cache.own.reset();
    cache.held.reset();
    slab.reset();
    guide_slab.reset();
  }
  /// What it holds of the device, apart from stored prefixes.
  int num_slabs() const {
    const bool is_probed = cache.shadow && cache.shadow->is_running();
    return (slab ? 1 : 0) + (guide_slab ? 1 : 0) + (is_probed ? 1 : 0);
  }
  int num_entries() const { return (cache.own ? 1 : 0) + (cache.shadow_own ? 1 : 0); }
  /// Rows of the next forward, with those of its probe.
  int num_rows() const {
    return decoder->next().num_rows + (cache.shadow ? cache.shadow->num_rows() : 0);
  }
  /// Whether its next forward runs nothing but rows of blocks.
  bool in_block() const {
    return decoder->next().in_block && (!cache.shadow || cache.shadow->in_block());
  }
  bool is_cancelled() const { return stream->cancelled[static_cast<size_t>(index)]; }
};

}  // namespace bicached
