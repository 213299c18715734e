#include "http/poller.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/log.h"
#include "base/spare_memory.h"
#include "bicached/error.h"

namespace bicached {
namespace {

using std::chrono::milliseconds;
using Phase = RequestReader::Phase;

constexpr int kTickMs = 100;  // how exact deadlines are
constexpr milliseconds kAcceptPause{100};
constexpr milliseconds kAcceptWarning{1000};
/// What the system takes beyond what is on its way to a client. By itself it takes megabytes, so
/// that one who pipelines requests and reads no answer would have some ten thousand answered.
constexpr int kMostUnsentBytes = 16 << 10;

void check(int result, const char* what) {
  if (result >= 0) return;
  throw Error(ErrorCode::kInternal, std::string(what) + ": " + std::strerror(errno));
}

Descriptor opened(int fd, const char* what) {
  check(fd, what);
  return Descriptor(fd);
}

}  // namespace

Poller::Poller(const std::vector<int>& listeners, const Options& options,
               RequestReader::CheckHead check_head, Dispatch dispatch)
    : listeners_(listeners),
      options_(options),
      check_head_(std::move(check_head)),
      dispatch_(std::move(dispatch)),
      epoll_(opened(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
      wake_(opened(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")) {
  check(control(EPOLL_CTL_ADD, wake_.get(), EPOLLIN), "epoll_ctl");
  watch_listeners(true);
}

Poller::~Poller() {
  for (Connection* next = take_all_returned(); next;) {
    const std::unique_ptr<Connection> connection(next);
    next = connection->next_returned;
  }
}

int Poller::control(int operation, int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  return ::epoll_ctl(epoll_.get(), operation, fd, &event);
}

void Poller::watch_listeners(bool on) {
  if (on == listening_) return;
  for (const int fd : listeners_) {
    const int result = control(on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, fd, EPOLLIN);
    if (on && errno != EEXIST) check(result, "epoll_ctl");
  }
  listening_ = on;
}

void Poller::stop() {
  stopping_ = true;
  wake();
}

void Poller::wake() noexcept {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);
}

void Poller::release_body(Connection& connection) noexcept {
  connection.bodies.set(0);
  connection.working.set(0);
  wake();
}

void Poller::give_back(std::unique_ptr<Connection> connection, bool closing) noexcept {
  Connection* const returned = connection.release();
  returned->returned_to_close = closing;
  returned->next_returned = returned_;
  while (!returned_.compare_exchange_weak(returned->next_returned, returned)) {
  }
  wake();
}

Connection* Poller::take_all_returned() {
  Connection* first = nullptr;
  for (Connection* last = returned_.exchange(nullptr); last;) {
    Connection* const before = std::exchange(last->next_returned, first);
    first = std::exchange(last, before);
  }
  return first;
}

void Poller::run(const std::function<void()>& close_listeners) {
  bool is_open = true;
  while (true) {
    if (stopping_ && is_open) {
      is_open = false;
      stop_listening(close_listeners);
    }
    if (!is_open && waiting_.empty() && dispatched_.empty() && held_.empty()) return;
    epoll_event events[64];
    const int count = ::epoll_wait(epoll_.get(), events, 64, kTickMs);
    bool accepts = false;
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      if (fd == wake_.get()) {
        uint64_t ignored;
        [[maybe_unused]] const ssize_t bytes = ::read(wake_.get(), &ignored, sizeof ignored);
      } else if (std::find(listeners_.begin(), listeners_.end(), fd) != listeners_.end()) {
        accepts = true;
      } else {
        guard(fd, [&] { handle_event(fd); });
      }
    }
    take_returned();
    dispatch_held();
    expire();
    refill_spare_memory();
    // Last: a descriptor that was closed above and is given out anew has no event of its own yet.
    if (accepts && is_open) accept_new();
    if (is_open && !listening_ && Clock::now() >= accept_again_) {
      contain("connections can't be accepted", [this] { watch_listeners(true); });
    }
  }
}

template <typename Use>
void Poller::guard(int fd, Use use) {
  if (!contain("a connection was ended", use) && waiting_.contains(fd)) end(fd);
}

/// Who has connected is answered: what waits in the backlog is accepted before it is closed.
void Poller::stop_listening(const std::function<void()>& close_listeners) {
  accept_new();
  watch_listeners(false);
  close_listeners();
  stopped_at_ = Clock::now();
  const auto last = stopped_at_ + options_.stop_grace;
  for (auto& [fd, waiting] : waiting_) {
    if (!waiting.closing) waiting.deadline = std::min(waiting.deadline, last);
  }
}

/// Only what is there now: pipelined requests come back as fast as they are taken, and new
/// connections would never have their turn.
void Poller::take_returned() {
  for (Connection* next = take_all_returned(); next;) {
    std::unique_ptr<Connection> connection(next);
    next = connection->next_returned;
    connection->bodies.set(0);
    connection->working.set(0);
    const int fd = connection->fd();
    dispatched_.erase(fd);
    const bool closing = connection->returned_to_close;
    guard(fd, [&] { watch(std::move(connection), closing); });
  }
}

void Poller::accept_new() {
  for (const int listener : listeners_) {
    while (true) {
      const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (fd < 0) {
        if (errno == ECONNABORTED || errno == EINTR) continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK) pause_accepting(errno);
        break;
      }
      guard(fd, [&] { take_in(Descriptor(fd)); });
    }
  }
}

void Poller::take_in(Descriptor socket) {
  const int fd = socket.get(), on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  ::setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kMostUnsentBytes, sizeof kMostUnsentBytes);
  auto connection = std::make_unique<Connection>(
      std::move(socket), RequestReader(options_.max_body_bytes, check_head_), held_bytes_);
  if (has_place() || make_place()) {
    watch(std::move(connection), false);
  } else {
    connection->send(
        "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n"
        "Retry-After: 1\r\nContent-Length: 0\r\n\r\n");
  }
}

/// No descriptor is left, and the sockets stay readable: they are looked at again in a while.
void Poller::pause_accepting(int error) {
  watch_listeners(false);
  const auto now = Clock::now();
  accept_again_ = now + kAcceptPause;
  ++num_accept_failures_;
  if (now < next_accept_warning_) return;
  next_accept_warning_ = now + kAcceptWarning;
  contain("connections can't be accepted", [&] {
    log_warn("can't accept connections: " + std::string(std::strerror(error)) + " (" +
             std::to_string(num_accept_failures_) +
             " attempts so far); a higher limit of open files (ulimit -n) helps");
  });
}

void Poller::watch(std::unique_ptr<Connection> connection, bool closing) {
  const int fd = connection->fd();
  Waiting& waiting = waiting_[fd];
  waiting = {
      std::move(connection), Clock::now() + options_.idle_timeout, Phase::kIdle, closing, {}};
  set_events(waiting, true);
  if (!flush(waiting)) return;
  if (waiting.connection->has_pending() || closing) return;
  waiting.connection->read_buffered();
  advance(waiting, false);
}

/// Only what is waited for, since a state that stays would be reported again and again.
void Poller::set_events(Waiting& waiting, bool is_new) {
  const Connection& connection = *waiting.connection;
  const uint32_t events = connection.has_pending() ? EPOLLOUT : EPOLLIN | EPOLLRDHUP;
  check(control(is_new ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, connection.fd(), events), "epoll_ctl");
}

std::unique_ptr<Connection> Poller::unwatch(int fd) {
  const auto it = waiting_.find(fd);
  std::unique_ptr<Connection> connection = std::move(it->second.connection);
  waiting_.erase(it);
  control(EPOLL_CTL_DEL, fd, 0);
  return connection;
}

void Poller::handle_event(int fd) {
  const auto it = waiting_.find(fd);
  if (it == waiting_.end()) return;
  Waiting& waiting = it->second;
  Connection& connection = *waiting.connection;
  if (connection.has_pending()) {
    if (!flush(waiting) || connection.has_pending() || waiting.closing) return;
    connection.read_buffered();
    return advance(waiting, false);
  }
  if (waiting.closing) {
    const Connection::Read result = connection.discard_available();
    if (result == Connection::Read::kClosed) end(fd);
    // A client that was refused in the midst of its body reads the answer only behind it.
    if (result == Connection::Read::kData && !stopping_) {
      waiting.deadline = std::min(Clock::now() + options_.linger_timeout, waiting.lingers_until);
    }
    return;
  }
  const Connection::Read result = connection.read_available();
  if (result != Connection::Read::kNothing) advance(waiting, result == Connection::Read::kClosed);
}

/// Sends what is left of an answer. False: the client is gone, and the connection too.
bool Poller::flush(Waiting& waiting) {
  Connection& connection = *waiting.connection;
  const int fd = connection.fd();
  const size_t before = connection.num_bytes();
  const bool is_there = connection.send_pending();
  freed(before - connection.num_bytes());
  if (!is_there) {
    end(fd);
    return false;
  }
  bound_answers(connection);
  const auto now = Clock::now();
  if (connection.has_pending()) {
    waiting.deadline = now + (stopping_ ? options_.stop_write_timeout : options_.write_timeout);
  } else if (waiting.closing) {
    connection.shut_down_writing();
    waiting.deadline = now + options_.linger_timeout;
    waiting.lingers_until = now + options_.body_timeout;
  } else {
    waiting.deadline = now + (stopping_ ? options_.stop_grace : options_.idle_timeout);
  }
  set_events(waiting, false);
  return true;
}

void Poller::advance(Waiting& waiting, bool ended) {
  Connection& connection = *waiting.connection;
  RequestReader& reader = connection.reader();
  const int fd = connection.fd();
  if (ended && reader.phase() == Phase::kBody) {
    reader.refuse(bad_request("the connection ended before the request's body was whole"));
  }
  bound(connection);
  if (reader.phase() == Phase::kArrived) return dispatch(fd);
  if (ended) return end(fd);
  if (reader.takes_continue()) {
    if (!connection.send("HTTP/1.1 100 Continue\r\n\r\n")) return end(fd);
    set_events(waiting, false);
  }
  if (reader.phase() == waiting.phase) return;
  waiting.phase = reader.phase();
  if (stopping_) return;  // the deadline stays
  waiting.deadline = Clock::now() + (waiting.phase == Phase::kHead   ? options_.head_timeout
                                     : waiting.phase == Phase::kBody ? options_.body_timeout
                                                                     : options_.idle_timeout);
}

void Poller::dispatch(int fd) {
  std::unique_ptr<Connection> connection = unwatch(fd);
  if (may_work_on(*connection)) {
    hand_over(std::move(connection));
  } else {
    held_.push_back(std::move(connection));
  }
}

void Poller::dispatch_held() {
  while (!held_.empty() && may_work_on(*held_.front())) {
    std::unique_ptr<Connection> connection = std::move(held_.front());
    held_.pop_front();
    guard(connection->fd(), [&] { hand_over(std::move(connection)); });
  }
}

void Poller::hand_over(std::unique_ptr<Connection> connection) {
  const int fd = connection->fd();
  connection->working.set(connection->bodies.num_bytes());  // until the worker says otherwise
  dispatched_.insert(fd);
  bool is_taken = false;
  guard(fd, [&] { is_taken = dispatch_(std::move(connection)); });
  if (!is_taken) dispatched_.erase(fd);
}

void Poller::expire() {
  const auto now = Clock::now();
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    const int fd = it->first;
    const bool is_due = it->second.deadline <= now;
    ++it;  // the one before may go
    if (is_due) guard(fd, [&] { expire(fd); });
  }
  if (!listening_ && stopped_at_ != Clock::time_point{} &&
      now >= stopped_at_ + options_.stop_grace + options_.stop_write_timeout) {
    end_unanswered();
  }
}

void Poller::expire(int fd) {
  Waiting& waiting = waiting_.at(fd);
  Connection& connection = *waiting.connection;
  const Phase phase = connection.reader().phase();
  const bool unfinished = phase == Phase::kHead || phase == Phase::kBody;
  if (!unfinished || waiting.closing || connection.has_pending()) return end(fd);
  refuse(connection,
         stopping_
             ? HttpRefusal{0, Error(ErrorCode::kDraining, "the server is shutting down")}
             : bad_request(phase == Phase::kBody ? "the request's body did not arrive in time"
                                                 : "the request's head did not arrive in time",
                           408));
  dispatch(fd);
}

/// Clients that take too long to read what workers write to them. The descriptors are the
/// workers' until they come back, and stay open.
void Poller::end_unanswered() {
  for (const int fd : dispatched_) ::shutdown(fd, SHUT_RDWR);
}

}  // namespace bicached
