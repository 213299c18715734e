#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "bicached/settings.h"
#include "engine/sequence.h"

namespace bicached {

/// What came of the attempt to place a waiting sequence.
enum class Placement {
  kPlaced,
  kNoRoom,         // the K/V pool is full
  kWaitsForEntry,  // its prefix is being made; others may go on meanwhile
  kEnded,          // it failed, and is no longer in the scheduler
};

/// Who is admitted and who takes part in the next forward: continuous batching at forward
/// granularity (DESIGN 5). Decides only; slabs and forwards are the engine's. Engine thread only.
class Scheduler {
 public:
  explicit Scheduler(const EngineSettings& settings) : settings_(settings) {
    running_.reserve(static_cast<size_t>(settings.max_running));
  }

  void enqueue(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }

  /// Admits waiting sequences while there is room: those first that have the fewest of their
  /// request before them, running or waiting, so that one request of many canvases keeps no other
  /// waiting for more than the canvas that ends next. Of equally many those that waited
  /// `max_age_ms`, then those whose prefix entry others use right now (`is_hot`), then the rest;
  /// the oldest in each. A small one may pass a large one that does not fit, until that one has
  /// waited `max_age_ms`.
  void admit(Sequence::Clock::time_point now, const std::function<bool(const Sequence&)>& is_hot,
             const std::function<Placement(Sequence&)>& place);

  /// The sequences of the next forward, within so many rows: those that waited `max_age_ms`, then
  /// the cheap in-block forwards, then the rest; the longest waiting first in each. With
  /// `blocks_alone`, either in-block forwards or others: what the longest waiting one needs, the
  /// longest waiting first, so that nobody starves. Never empty while something runs; a canvas over
  /// the budget goes alone.
  std::vector<Sequence*> select(Sequence::Clock::time_point now, int max_rows,
                                bool blocks_alone) const;

  /// Asks those that run until `found` says yes; whether it did.
  bool any_running(const std::function<bool(Sequence&)>& found) const;

  /// Takes out all, waiting or running, for which the predicate holds.
  std::vector<std::unique_ptr<Sequence>> take_if(const std::function<bool(const Sequence&)>& gone);

  bool empty() const { return waiting_.empty() && running_.empty(); }
  int num_waiting() const { return static_cast<int>(waiting_.size()); }
  int num_running() const { return static_cast<int>(running_.size()); }
  /// What they hold of the device.
  int64_t num_slabs() const;
  int64_t num_entries() const;

 private:
  bool is_aged(Sequence::Clock::time_point since, Sequence::Clock::time_point now) const {
    return now - since >= std::chrono::milliseconds(settings_.max_age_ms);
  }

  const EngineSettings settings_;
  std::deque<std::unique_ptr<Sequence>> waiting_;   // by submit
  std::vector<std::unique_ptr<Sequence>> running_;  // by admission
};

}  // namespace bicached
