#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <list>
#include <memory>
#include <unordered_map>

#include "bicached/channel.h"
#include "http/connection.h"

namespace bicached {

/// Accepts connections and watches those that wait for a request, so that an idle or slow client
/// costs a file descriptor and no thread. A connection goes to a worker when a whole request head
/// has arrived, and comes back (`park`) for the next request.
///
/// `run` on one thread; `park`, `close_gently` and `stop` from any.
class Poller {
 public:
  struct Options {
    std::chrono::milliseconds idle_timeout{5000};   // between requests
    std::chrono::milliseconds head_timeout{10000};  // for a request's head to arrive
    /// How long a closing connection may still send: closing at once would make the client's
    /// system throw away our last answer.
    std::chrono::milliseconds linger_timeout{1000};
    size_t max_connections = 4096;
  };
  /// Hands a connection to a worker. False: no room, it is closed.
  using Dispatch = std::function<bool(std::unique_ptr<Connection>)>;

  /// `listener`: a listening socket, not owned.
  Poller(int listener, const Options& options, Dispatch dispatch);
  ~Poller();

  /// Until `stop`, and then until the workers have given back what they hold.
  void run();
  void stop();
  bool stopping() const { return stopping_; }

  void park(std::unique_ptr<Connection> connection);
  /// Lets the client read the last answer, then closes.
  void close_gently(std::unique_ptr<Connection> connection);

 private:
  using Clock = std::chrono::steady_clock;
  struct Waiting {
    std::unique_ptr<Connection> connection;
    Clock::time_point deadline;
    bool closing = false;
  };
  struct Returned {
    std::unique_ptr<Connection> connection;
    bool closing = false;
  };

  void give_back(Returned returned);
  void take_returned();
  void accept_new();
  void watch(std::unique_ptr<Connection> connection, Clock::time_point deadline, bool closing);
  void handle_readable(int fd);
  void close_expired();
  void close_idle();
  std::unique_ptr<Connection> unwatch(int fd);

  const int listener_;
  const Options options_;
  const Dispatch dispatch_;
  int epoll_ = -1;
  int wake_ = -1;
  std::atomic<bool> stopping_{false};
  Channel<Returned> returned_;
  std::unordered_map<int, Waiting> waiting_;  // by file descriptor
  size_t num_dispatched_ = 0;                 // with workers
};

}  // namespace bicached
