#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <string_view>

#include "base/descriptor.h"
#include "base/free_memory.h"
#include "http/request_reader.h"

namespace bicached {

/// What requests hold, summed over all connections. Any thread.
struct HeldBytes {
  std::atomic<size_t> heads{0};    // of unfinished heads, if they are long
  std::atomic<size_t> bodies{0};   // of long bodies that arrive or have arrived
  std::atomic<size_t> working{0};  // of long bodies that workers have
  std::atomic<size_t> answers{0};  // of long answers that clients have yet to take
};

/// One connection's part of such a sum, given back with it. One thread at a time.
class Share {
 public:
  explicit Share(std::atomic<size_t>& sum) : sum_(sum) {}
  ~Share() { set(0); }
  Share(const Share&) = delete;
  Share& operator=(const Share&) = delete;

  void set(size_t num_bytes) {
    sum_ += num_bytes - num_bytes_;
    num_bytes_ = num_bytes;
  }
  size_t num_bytes() const { return num_bytes_; }

 private:
  std::atomic<size_t>& sum_;
  size_t num_bytes_ = 0;
};

/// A client's socket (not blocking), the request that is arriving on it, and what could not be
/// sent yet. Belongs to one thread at a time: the poller's while it waits, a worker's while a
/// request is answered.
class Connection {
 public:
  Connection(Descriptor socket, RequestReader reader, HeldBytes& held)
      : heads(held.heads),
        bodies(held.bodies),
        working(held.working),
        answers(held.answers),
        socket_(std::move(socket)),
        reader_(std::move(reader)) {}
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// The poller's: what it holds of the sums, and how it came back from a worker.
  Share heads, bodies, working, answers;
  Connection* next_returned = nullptr;
  bool returned_to_close = false;

  int fd() const { return socket_.get(); }
  const RequestReader& reader() const { return reader_; }
  RequestReader& reader() { return reader_; }

  enum class Read { kData, kNothing, kClosed };
  /// Reads what has arrived and puts it together, up to the end of a request; never waits.
  /// kClosed: the client sends no more (it may still read).
  Read read_available();
  /// The next request out of what came with the one before.
  void read_buffered();
  /// Reads and drops what has arrived; for closing without losing the last response.
  Read discard_available();

  /// Sends what the socket takes now and keeps the rest. False: the client is gone.
  bool send(std::string_view bytes);
  bool send_pending() { return send({}); }
  bool has_pending() const { return num_unsent_bytes() > 0; }
  size_t num_unsent_bytes() const { return pending_.size() - num_sent_; }
  /// Arrived, and no part of a request yet.
  size_t num_unread_bytes() const { return buffer_.size(); }
  void drop_unread() { free_text(buffer_); }
  /// Memory that it holds.
  size_t num_bytes() const {
    return buffer_.capacity() + pending_.capacity() + reader_.num_body_bytes();
  }
  /// Waits until all is sent. False: the client is gone, or takes nothing for `timeout`.
  bool send_all(std::string_view bytes, std::chrono::milliseconds timeout);

  /// Whether the client has closed its side. It may have ended only its own sending: what has
  /// been asked can be answered then, but nobody may read it.
  bool peer_closed() const;
  /// Of a client that has closed its side: whether it did so right behind its request, as one does
  /// that has said all it wants (nc -N, socat) and then reads.
  bool closed_with_request() const;
  /// Whether nothing that is sent can arrive any more.
  bool is_broken() const;
  void shut_down_writing();

 private:
  const Descriptor socket_;
  RequestReader reader_;
  std::string buffer_;   // arrived and not read by the reader
  std::string pending_;  // from num_sent_ on not sent yet
  size_t num_sent_ = 0;
};

}  // namespace bicached
