#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/free_memory.h"
#include "http/connection.h"

namespace bicached {

/// Accepts connections and does all that waits for a client: for its requests, bodies included,
/// and for it to take an answer that is whole. An idle or slow client costs a file descriptor and
/// no thread. A connection goes to a worker when a request has arrived, and comes back when it is
/// answered.
///
/// Memory that runs out costs the connection that asked for it. What workers call needs none.
///
/// `run` on one thread; `give_back`, `release_body`, `freed` and `stop` from any.
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

  /// From a worker. `closing`: lets the client read the last answer, then closes.
  void give_back(std::unique_ptr<Connection> connection, bool closing) noexcept;
  /// The body of the request that a worker has from this connection takes no memory any more.
  void release_body(Connection& connection) noexcept;
  /// So much of what requests and answers took is free.
  void freed(size_t num_bytes) { freed_.add(num_bytes); }

 private:
  using Clock = std::chrono::steady_clock;
  struct Waiting {
    std::unique_ptr<Connection> connection;
    Clock::time_point deadline;
    RequestReader::Phase phase = RequestReader::Phase::kIdle;
    bool closing = false;
    Clock::time_point lingers_until{};  // closing, and all is sent: at the latest
  };

  void wake() noexcept;
  /// Those that came back from workers, in their order.
  Connection* take_all_returned();
  /// Does `use` for one connection. Where that fails (memory or a descriptor is lacking) the
  /// connection ends, and nobody else's.
  template <typename Use>
  void guard(int fd, Use use);
  void take_returned();
  void accept_new();
  void take_in(Descriptor socket);
  bool has_place() const {
    return waiting_.size() + dispatched_.size() + held_.size() < options_.max_connections;
  }
  bool make_place();
  void pause_accepting(int error);
  /// Asks epoll for events of a descriptor, or (EPOLL_CTL_DEL) for no more. As `epoll_ctl`.
  int control(int operation, int fd, uint32_t events);
  void watch_listeners(bool on);
  void stop_listening(const std::function<void()>& close_listeners);

  void watch(std::unique_ptr<Connection> connection, bool closing);
  std::unique_ptr<Connection> unwatch(int fd);
  void end(int fd) { freed(unwatch(fd)->num_bytes()); }
  void set_events(Waiting& waiting, bool is_new);
  void handle_event(int fd);
  bool flush(Waiting& waiting);
  /// What has arrived on it: dispatches a whole request, sets the deadline of what is missing.
  void advance(Waiting& waiting, bool ended);
  template <typename Counts>
  auto first_due(Counts counts);
  void count(Connection& connection);
  void refuse(Connection& connection, HttpRefusal refusal);
  void bound(Connection& connection);
  void bound_answers(Connection& latest);
  void dispatch(int fd);
  void dispatch_held();
  bool may_work_on(const Connection& connection) const;
  void hand_over(std::unique_ptr<Connection> connection);
  void expire();
  void expire(int fd);
  void end_unanswered();

  const std::vector<int> listeners_;
  const Options options_;
  const RequestReader::CheckHead check_head_;
  const Dispatch dispatch_;
  const Descriptor epoll_;
  const Descriptor wake_;
  std::atomic<bool> stopping_{false};
  std::atomic<Connection*> returned_{nullptr};  // the last one; linked by next_returned
  FreedMemory freed_;

  HeldBytes held_bytes_;                          // before the connections, which count in it
  std::unordered_map<int, Waiting> waiting_;      // by file descriptor
  std::unordered_set<int> dispatched_;            // with workers
  std::deque<std::unique_ptr<Connection>> held_;  // arrived; other long bodies are worked on
  bool listening_ = false;
  Clock::time_point accept_again_{};
  Clock::time_point next_accept_warning_{};
  int64_t num_accept_failures_ = 0;
  Clock::time_point stopped_at_{};
};

}  // namespace bicached
