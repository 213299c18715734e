#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "bicached/channel.h"
#include "http/connection.h"

namespace bicached {

/// Accepts connections and does all that waits for a client: for its requests, bodies included,
/// and for it to take an answer that is whole. An idle or slow client costs a file descriptor and
/// no thread. A connection goes to a worker when a request has arrived, and comes back (`park`,
/// `close_gently`) when it is answered.
///
/// `run` on one thread; `park`, `close_gently`, `release_body` and `stop` from any.
class Poller {
 public:
  struct Options {
    std::chrono::milliseconds idle_timeout{5000};   // between requests
    std::chrono::milliseconds head_timeout{10000};  // for a request's head to arrive
    std::chrono::milliseconds body_timeout{30000};  // and its body
    std::chrono::milliseconds write_timeout{10000};
    /// How long a closing connection may send nothing before it is closed, `body_timeout` in all:
    /// closing at once would make the client's system throw away our last answer.
    std::chrono::milliseconds linger_timeout{1000};
    /// After `stop`: who is connected may still finish a request in this time, and gets 503.
    std::chrono::milliseconds stop_grace{500};
    /// After that, an answer has to be taken within this time.
    std::chrono::milliseconds stop_write_timeout{2000};
    size_t max_connections = 4096;
    int64_t max_body_bytes = 4 << 20;
  };
  /// Hands a connection with an arrived request to a worker. False: no room, it is closed.
  using Dispatch = std::function<bool(std::unique_ptr<Connection>)>;

  /// `listeners`: listening sockets that do not block, not owned.
  Poller(const std::vector<int>& listeners, const Options& options,
         RequestReader::CheckHead check_head, Dispatch dispatch);
  ~Poller();

  /// Until `stop`, and then until all are answered. `close_listeners` is called once nothing more
  /// is accepted.
  void run(const std::function<void()>& close_listeners);
  void stop();
  bool stopping() const { return stopping_; }

  void park(std::unique_ptr<Connection> connection);
  /// Lets the client read the last answer, then closes.
  void close_gently(std::unique_ptr<Connection> connection);
  /// The body of the request that a worker has from this connection takes no memory any more.
  void release_body(int fd);

 private:
  using Clock = std::chrono::steady_clock;
  struct Waiting {
    std::unique_ptr<Connection> connection;
    Clock::time_point deadline;
    RequestReader::Phase phase = RequestReader::Phase::kIdle;
    bool closing = false;
    size_t counted_bytes = 0;           // of its body, in held_bytes_
    Clock::time_point lingers_until{};  // closing, and all is sent: at the latest
  };
  struct Returned {
    std::unique_ptr<Connection> connection;  // null: only the body is released
    int fd = -1;
    bool closing = false;
  };

  void give_back(Returned returned);
  /// Does `use` for one connection. Where that fails (memory or a descriptor is lacking) the
  /// connection ends, and nobody else's.
  template <typename Use>
  void guard(int fd, Use use);
  void take_returned();
  void accept_new();
  void take_in(int fd);
  bool has_place() const {
    return waiting_.size() + dispatched_.size() + held_.size() < options_.max_connections;
  }
  bool make_place();
  void pause_accepting(int error);
  void watch_listeners(bool on);
  void stop_listening(const std::function<void()>& close_listeners);

  void watch(std::unique_ptr<Connection> connection, bool closing);
  std::unique_ptr<Connection> unwatch(int fd);
  void set_events(Waiting& waiting, bool is_new);
  void handle_event(int fd);
  bool flush(Waiting& waiting);
  /// What has arrived on it: dispatches a whole request, sets the deadline of what is missing.
  void advance(Waiting& waiting, bool ended);
  void count_body(Waiting& waiting);
  void dispatch(int fd);
  void dispatch_held();
  void hand_over(std::unique_ptr<Connection> connection, size_t body_bytes);
  void release(int fd);
  void expire();
  void expire(int fd);
  void end_unanswered();

  const std::vector<int> listeners_;
  const Options options_;
  const RequestReader::CheckHead check_head_;
  const Dispatch dispatch_;
  int epoll_ = -1;
  int wake_ = -1;
  std::atomic<bool> stopping_{false};
  Channel<Returned> returned_;

  std::unordered_map<int, Waiting> waiting_;      // by file descriptor
  std::unordered_map<int, size_t> dispatched_;    // with workers: bytes of the body they have
  std::deque<std::unique_ptr<Connection>> held_;  // arrived; other long bodies are worked on
  size_t held_bytes_ = 0;                         // of long bodies that arrive or have arrived
  size_t working_bytes_ = 0;                      // of those that workers have
  bool listening_ = false;
  Clock::time_point accept_again_{};
  Clock::time_point next_accept_warning_{};
  int64_t num_accept_failures_ = 0;
  Clock::time_point stopped_at_{};
};

}  // namespace bicached
