#include "http/http_library.h"

#include <httplib.h>

#include <charconv>
#include <chrono>
#include <utility>

#include "http/answer_writer.h"
#include "http/errors.h"

namespace bicached {
namespace {

using std::chrono::milliseconds;

/// A client that takes no bytes of a stream for this long is gone.
constexpr milliseconds kWriteTimeout{10000};
/// What the HTTP library reads and writes for one request: a head that is written for it, and the
/// connection.
///
/// An answer with a Content-Length is whole: it is kept, and sent as the client takes it, so that
/// no worker waits for a slow one. One without is made bit by bit, and each goes out at once.
class RequestStream final : public httplib::Stream {
 public:
  RequestStream(Connection& connection, std::string head)
      : connection_(connection), head_(std::move(head)) {}

  /// Of the answer; 0 before it began.
  int status() const { return status_; }
  /// Its end is the connection's end.
  bool is_open_ended() const { return is_direct_ && !is_chunked_; }
  std::string take_answer() { return std::move(answer_); }

  bool is_readable() const override { return !head_.empty(); }
  bool wait_readable() const override { return is_readable(); }
  bool wait_writable() const override { return true; }
  bool is_peer_alive() const override { return !connection_.is_broken(); }

  ssize_t read(char* to, size_t size) override {
    const size_t count = head_.copy(to, size);
    head_.erase(0, count);
    return static_cast<ssize_t>(count);
  }

  ssize_t write(const char* bytes, size_t size) override {
    const std::string_view text(bytes, size);
    if (status_ == 0) begin(text);
    if (!is_direct_) {
      answer_ += text;
      return static_cast<ssize_t>(size);
    }
    return connection_.send_all(text, kWriteTimeout) ? static_cast<ssize_t>(size) : -1;
  }

  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return connection_.fd(); }
  time_t duration() const override { return 0; }

 private:
  void begin(std::string_view text) {
    constexpr size_t kStatusAt = sizeof "HTTP/1.1 " - 1;
    status_ = -1;
    if (text.size() > kStatusAt + 3) {
      std::from_chars(text.data() + kStatusAt, text.data() + kStatusAt + 3, status_);
    }
    const std::string_view head = text.substr(0, text.find("\r\n\r\n") + 2);
    is_direct_ = head.find("\r\nContent-Length: ") == std::string_view::npos;
    is_chunked_ = head.find("\r\nTransfer-Encoding: chunked\r\n") != std::string_view::npos;
  }

  Connection& connection_;
  std::string head_;
  std::string answer_;
  bool is_direct_ = false;
  bool is_chunked_ = false;
  int status_ = 0;
};

/// What is said of the connection, and the headers of every answer.
void finish(const LibraryRequest& request, httplib::Response& response) {
  // The library announces a number of requests that nobody counts.
  const bool keeps = response.headers.erase("Keep-Alive") > 0 && !response.has_header("Connection");
  response.headers.erase("Connection");
  if (!keeps) response.set_header("Connection", "close");
  if (keeps && request.idle_timeout_s > 0) {
    response.set_header("Keep-Alive", "timeout=" + std::to_string(request.idle_timeout_s));
  }
  if (keeps && request.head.is_http_1_0) response.set_header("Connection", "keep-alive");
  response.headers.erase("Accept-Ranges");
  for (const auto& [name, value] : request.headers) response.set_header(name, value);
}

void fill(httplib::Response& response, const LibraryRequest& request, HttpReply reply) {
  response.status = reply.status;
  for (const auto& [name, value] : reply.headers) response.set_header(name, value);
  if (!reply.stream) {
    request.done(reply);
    response.set_content(std::move(reply.body), reply.content_type);
    return;
  }
  const auto provide = [stream = std::move(reply.stream)](size_t, httplib::DataSink& sink) {
    bool alive = true;
    stream([&](std::string_view bytes) {
      return alive = alive && sink.write(bytes.data(), bytes.size());
    });
    if (alive) sink.done();
    return alive;
  };
  reply.stream = nullptr;
  const std::string content_type = reply.content_type;
  const auto done = [&request, reply = std::move(reply)](bool) { request.done(reply); };
  if (request.head.is_http_1_0) {  // it has no chunks: the stream ends with the connection
    response.set_header("Connection", "close");
    response.set_content_provider(content_type, provide, done);
  } else {
    response.set_chunked_content_provider(content_type, provide, done);
  }
}

/// The library for one request.
class Library final : public httplib::Server {
 public:
  Library() { svr_sock_ = 0; }  // it writes streams only while it listens, which others do for it

  /// False: the connection can't be used further.
  bool answer(RequestStream& stream, const LibraryRequest& request) {
    set_pre_routing_handler([&](const httplib::Request& parsed, httplib::Response& response) {
      fill(response, request, request.handle(parsed.params));
      return HandlerResponse::Handled;
    });
    set_error_handler([](const httplib::Request&, httplib::Response& response) {
      if (!response.body.empty()) return;  // what the library refuses by itself has no body yet
      response.set_content(dump_json(error_json_of_status(response.status)), "application/json");
    });
    set_post_routing_handler(
        [&](const httplib::Request&, httplib::Response& response) { finish(request, response); });
    bool closed = false;
    return process_request(stream, "", 0, "", 0, !request.keeps_alive, closed, nullptr) && !closed;
  }
};

/// A request's head as the library gets it: what it would act on by itself is left out.
std::string head_for_library(const RequestHead& head, bool keeps_alive) {
  std::string text =
      head.method + " " + head.target + " " + (head.is_http_1_0 ? "HTTP/1.0" : "HTTP/1.1") + "\r\n";
  text += keeps_alive ? "Connection: Keep-Alive\r\n" : "Connection: close\r\n";
  return text + "Content-Length: 0\r\n\r\n";
}

}  // namespace

std::string path_of_target(const std::string& target) {
  return httplib::decode_path_component(target.substr(0, target.find_first_of("?#")));
}

std::string reason_phrase(int status) { return httplib::status_message(status); }

struct WorkerPool::Impl {
  httplib::ThreadPool threads;
};

WorkerPool::WorkerPool(int num_threads, size_t max_waiting)
    : impl_(new Impl{httplib::ThreadPool(static_cast<size_t>(num_threads),
                                         static_cast<size_t>(num_threads), max_waiting)}) {}
WorkerPool::~WorkerPool() = default;

bool WorkerPool::enqueue(std::function<void()> work) {
  return impl_->threads.enqueue(std::move(work));
}

void WorkerPool::shut_down() { impl_->threads.shutdown(); }

bool answer_with_library(const LibraryRequest& request) {
  RequestStream stream(request.connection, head_for_library(request.head, request.keeps_alive));
  Library library;
  const bool usable = library.answer(stream, request);
  if (stream.status() == kStatusClientGone) return false;
  if (!request.connection.send(stream.take_answer())) return false;
  return usable && request.keeps_alive && stream.status() >= 200 && stream.status() < 400 &&
         !stream.is_open_ended();
}

}  // namespace bicached
