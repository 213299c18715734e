#include "http/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace bicached {
namespace {

short poll_now(int fd, short events) {
  pollfd waiting{fd, events, 0};
  return ::poll(&waiting, 1, 0) > 0 ? waiting.revents : short{0};
}

/// Of a `recv` that gave nothing.
Connection::Read why_nothing(ssize_t count) {
  const bool may_come = count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
  return may_come ? Connection::Read::kNothing : Connection::Read::kClosed;
}

}  // namespace

void Connection::read_buffered() {
  if (reader_.phase() == RequestReader::Phase::kArrived) return;
  buffer_.erase(0, reader_.read(buffer_));
  if (buffer_.empty()) buffer_.shrink_to_fit();  // a long body is not kept with its connection
}

Connection::Read Connection::read_available() {
  constexpr int kMaxPieces = 16;  // then the others get their turn
  char bytes[16 << 10];
  Read result = Read::kNothing;
  for (int i = 0; i < kMaxPieces && reader_.phase() != RequestReader::Phase::kArrived; ++i) {
    const ssize_t count = ::recv(fd(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (count <= 0) return why_nothing(count) == Read::kClosed ? Read::kClosed : result;
    result = Read::kData;
    buffer_.append(bytes, static_cast<size_t>(count));
    read_buffered();
  }
  return result;
}

Connection::Read Connection::discard_available() {
  char bytes[16 << 10];
  const ssize_t count = ::recv(fd(), bytes, sizeof bytes, MSG_DONTWAIT);
  return count > 0 ? Read::kData : why_nothing(count);
}

bool Connection::send(std::string_view bytes) {
  pending_ += bytes;
  while (has_pending()) {
    const ssize_t count = ::send(fd(), pending_.data() + num_sent_, pending_.size() - num_sent_,
                                 MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count > 0) {
      num_sent_ += static_cast<size_t>(count);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return true;
    break;
  }
  const bool is_sent = !has_pending();
  free_text(pending_);
  num_sent_ = 0;
  return is_sent;
}

bool Connection::send_all(std::string_view bytes, std::chrono::milliseconds timeout) {
  if (!send(bytes)) return false;
  while (has_pending()) {
    pollfd waiting{fd(), POLLOUT, 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(timeout.count()));
    if (ready == 0 || (ready < 0 && errno != EINTR)) return false;
    if (!send_pending()) return false;
  }
  return true;
}

bool Connection::peer_closed() const {
  return (poll_now(fd(), POLLRDHUP) & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

bool Connection::closed_with_request() const {
  // The close has no data, so that the two times are those of the request's end and of the close.
  constexpr unsigned kMostMs = 10;
  tcp_info info{};
  socklen_t size = sizeof info;
  if (::getsockopt(fd(), IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return false;
  return info.tcpi_last_data_recv <= info.tcpi_last_ack_recv + kMostMs;
}

bool Connection::is_broken() const { return (poll_now(fd(), 0) & (POLLHUP | POLLERR)) != 0; }

void Connection::shut_down_writing() { ::shutdown(fd(), SHUT_WR); }

}  // namespace bicached
