#pragma once

#include <chrono>

#include "http/exchange.h"

namespace bicached {

/// Whether the client of a request that a worker works on is still there. One thread.
class ClientWatch {
 public:
  using Clock = std::chrono::steady_clock;

  ClientWatch(const HttpRequest& request, bool is_streamed)
      : request_(request), is_streamed_(is_streamed) {}

  Clock::time_point next_look() const { return next_look_; }
  /// Looks when it is time to; in between the client counts as there. By the clock, since work may
  /// come so fast that nobody ever waits.
  ClientState look() {
    if (Clock::now() < next_look_) return ClientState::kThere;
    next_look_ = Clock::now() + kInterval;
    return request_.client_state(is_streamed_);
  }

 private:
  static constexpr std::chrono::milliseconds kInterval{50};

  const HttpRequest& request_;
  const bool is_streamed_;
  Clock::time_point next_look_ = Clock::now() + kInterval;
};

}  // namespace bicached
