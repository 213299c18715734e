#pragma once

#include <atomic>
#include <functional>
#include <thread>

#include "base/descriptor.h"

namespace bicached {

/// SIGTERM and SIGINT as something to wait for. Make it in the main thread before any other thread
/// starts: the signals are blocked from then on (threads inherit that) and read by a thread of its
/// own, so nothing runs in a signal handler.
///
/// Until `set_ready` the first signal ends the process with 0: while the model loads there is
/// nothing to drain. After it, the first one ends `wait`, a second one ends the process at once.
///
/// SIGHUP (a log was rotated, a terminal closed, a supervisor's reload) calls `on_hangup` on the
/// thread of signals. Signals that would end a process which does not know them are ignored.
class ShutdownSignals {
 public:
  explicit ShutdownSignals(std::function<void()> on_hangup);
  ~ShutdownSignals();
  ShutdownSignals(const ShutdownSignals&) = delete;
  ShutdownSignals& operator=(const ShutdownSignals&) = delete;

  void set_ready() { ready_ = true; }
  /// Waits for the first signal, or for `request`.
  void wait() const { requested_.wait(false); }
  /// As if a signal had come. Any thread.
  void request();

 private:
  void run();

  const std::function<void()> on_hangup_;
  std::atomic<bool> ready_{false};
  std::atomic<bool> requested_{false};
  Descriptor signals_, end_;
  std::thread thread_;
};

}  // namespace bicached
