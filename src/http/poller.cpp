#include "http/poller.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "bicached/error.h"

namespace bicached {
namespace {

constexpr int kTickMs = 100;  // how exact deadlines are

void check(int result, const char* what) {
  if (result >= 0) return;
  throw Error(ErrorCode::kInternal, std::string(what) + ": " + std::strerror(errno));
}

void add_to(int epoll, int fd) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.fd = fd;
  check(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

}  // namespace

Poller::Poller(int listener, const Options& options, Dispatch dispatch)
    : listener_(listener),
      options_(options),
      dispatch_(std::move(dispatch)),
      returned_(std::numeric_limits<size_t>::max()) {
  check(epoll_ = ::epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  check(wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
  const int flags = ::fcntl(listener_, F_GETFL);
  check(::fcntl(listener_, F_SETFL, flags | O_NONBLOCK), "fcntl");
  add_to(epoll_, listener_);
  add_to(epoll_, wake_);
}

Poller::~Poller() {
  ::close(wake_);
  ::close(epoll_);
}

void Poller::stop() {
  stopping_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_, &one, sizeof one);
}

void Poller::park(std::unique_ptr<Connection> connection) {
  give_back({std::move(connection), false});
}

void Poller::close_gently(std::unique_ptr<Connection> connection) {
  connection->shut_down_writing();
  give_back({std::move(connection), true});
}

void Poller::give_back(Returned returned) {
  returned_.try_push(std::move(returned));
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_, &one, sizeof one);
}

void Poller::run() {
  bool listening = true;
  while (true) {
    if (stopping_ && listening) {
      ::epoll_ctl(epoll_, EPOLL_CTL_DEL, listener_, nullptr);
      listening = false;
      close_idle();
    }
    if (stopping_ && num_dispatched_ == 0 && waiting_.empty()) return;
    epoll_event events[64];
    const int count = ::epoll_wait(epoll_, events, 64, kTickMs);
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      if (fd == listener_) {
        accept_new();
      } else if (fd == wake_) {
        uint64_t ignored;
        [[maybe_unused]] const ssize_t bytes = ::read(wake_, &ignored, sizeof ignored);
      } else {
        handle_readable(fd);
      }
    }
    take_returned();
    close_expired();
  }
}

void Poller::take_returned() {
  while (std::optional<Returned> returned = returned_.try_pop()) {
    --num_dispatched_;
    const auto now = Clock::now();
    if (returned->closing) {
      watch(std::move(returned->connection), now + options_.linger_timeout, true);
    } else if (!stopping_) {
      watch(std::move(returned->connection), now + options_.idle_timeout, false);
    }
  }
}

void Poller::accept_new() {
  while (true) {
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        log_warn(std::string("can't accept a connection: ") + std::strerror(errno));
        std::this_thread::sleep_for(std::chrono::milliseconds(10));  // it stays readable
      }
      return;
    }
    auto connection = std::make_unique<Connection>(fd);
    if (waiting_.size() + num_dispatched_ >= options_.max_connections) continue;  // closes it
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    watch(std::move(connection), Clock::now() + options_.head_timeout, false);
  }
}

void Poller::watch(std::unique_ptr<Connection> connection, Clock::time_point deadline,
                   bool closing) {
  const int fd = connection->fd();
  add_to(epoll_, fd);
  waiting_[fd] = {std::move(connection), deadline, closing};
}

std::unique_ptr<Connection> Poller::unwatch(int fd) {
  const auto it = waiting_.find(fd);
  std::unique_ptr<Connection> connection = std::move(it->second.connection);
  waiting_.erase(it);
  ::epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
  return connection;
}

void Poller::handle_readable(int fd) {
  const auto it = waiting_.find(fd);
  if (it == waiting_.end()) return;
  Waiting& waiting = it->second;
  if (waiting.closing) {
    if (waiting.connection->discard_available() == Connection::Read::kClosed) unwatch(fd);
    return;
  }
  const bool fresh = waiting.connection->buffered().empty();
  const Connection::Read result = waiting.connection->read_available();
  if (result == Connection::Read::kNothing) return;
  if (result == Connection::Read::kClosed) {
    unwatch(fd);
    return;
  }
  if (fresh) waiting.deadline = Clock::now() + options_.head_timeout;
  const std::string_view bytes = waiting.connection->buffered();
  if (!find_head_end(bytes) && bytes.size() < kMaxHeadBytes) return;
  ++num_dispatched_;
  if (!dispatch_(unwatch(fd))) --num_dispatched_;
}

void Poller::close_expired() {
  const auto now = Clock::now();
  std::vector<int> expired;
  for (const auto& [fd, waiting] : waiting_) {
    if (waiting.deadline <= now) expired.push_back(fd);
  }
  for (int fd : expired) unwatch(fd);
}

void Poller::close_idle() {
  std::vector<int> idle;
  for (const auto& [fd, waiting] : waiting_) {
    if (!waiting.closing) idle.push_back(fd);
  }
  for (int fd : idle) unwatch(fd);
}

}  // namespace bicached
