#include "bicached/http_server.h"

// The library's default of 5 drops connections when many clients come at once.
#define CPPHTTPLIB_LISTEN_BACKLOG 128
#include <httplib.h>

#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>

#include <atomic>
#include <charconv>
#include <random>

#include "base/log.h"
#include "bicached/error.h"
#include "http/api.h"
#include "http/connection.h"
#include "http/errors.h"
#include "http/poller.h"
#include "http/request_id.h"
#include "http/responses.h"

namespace bicached {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// A client that takes no bytes for this long is gone.
constexpr milliseconds kWriteTimeout{10000};
/// A whole body has to arrive in this time: a trickle of bytes must not hold a worker.
constexpr milliseconds kBodyTimeout{30000};

/// A connection as the HTTP library reads and writes it, for one request.
///
/// Two things differ from the library's own stream: all reads share one deadline, and nothing more
/// is read once the answer has begun (the library would wait for the rest of a refused body).
class RequestStream final : public httplib::Stream {
 public:
  explicit RequestStream(Connection& connection)
      : connection_(connection), deadline_(Clock::now() + kBodyTimeout) {}

  /// The client waits for "100 Continue" before it sends the body: say it when the body is read.
  void promise_continue() { owes_continue_ = true; }
  /// Of the answer; 0 before it began.
  int status() const { return status_; }

  bool is_readable() const override { return !connection_.buffered().empty(); }
  bool wait_readable() const override { return is_readable() || wait(POLLIN, time_left()); }
  bool wait_writable() const override { return wait(POLLOUT, kWriteTimeout); }
  bool is_peer_alive() const override { return !connection_.peer_closed(); }

  ssize_t read(char* to, size_t size) override {
    if (status_ != 0) return 0;
    if (!connection_.buffered().empty()) return static_cast<ssize_t>(connection_.take(to, size));
    if (owes_continue_) {
      owes_continue_ = false;
      if (!connection_.write_all("HTTP/1.1 100 Continue\r\n\r\n", kWriteTimeout)) return -1;
    }
    while (wait(POLLIN, time_left())) {
      const Connection::Read result = connection_.read_available();
      if (result == Connection::Read::kClosed) return 0;
      if (result == Connection::Read::kData)
        return static_cast<ssize_t>(connection_.take(to, size));
    }
    return -1;
  }

  ssize_t write(const char* bytes, size_t size) override {
    if (status_ == 0) {
      constexpr size_t kStatusAt = sizeof "HTTP/1.1 " - 1;
      status_ = -1;
      if (size > kStatusAt + 3) std::from_chars(bytes + kStatusAt, bytes + kStatusAt + 3, status_);
    }
    return connection_.write_all({bytes, size}, kWriteTimeout) ? static_cast<ssize_t>(size) : -1;
  }

  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return connection_.fd(); }
  time_t duration() const override { return 0; }

 private:
  milliseconds time_left() const {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline_ - Clock::now());
    return std::max(left, milliseconds(0));
  }
  bool wait(short events, milliseconds timeout) const {
    pollfd waiting{connection_.fd(), events, 0};
    return ::poll(&waiting, 1, static_cast<int>(timeout.count())) > 0;
  }

  Connection& connection_;
  const Clock::time_point deadline_;
  bool owes_continue_ = false;
  int status_ = 0;
};

/// A place among the requests that may take long; free on destruction.
class Place {
 public:
  explicit Place(std::atomic<int>& free_places) : free_places_(free_places) {}
  ~Place() {
    if (taken_) ++free_places_;
  }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  bool take() {
    if (--free_places_ < 0) {
      ++free_places_;
      return false;
    }
    return taken_ = true;
  }

 private:
  std::atomic<int>& free_places_;
  bool taken_ = false;
};

/// The HTTP library for parsing and writing; accepting and waiting are ours (see Poller).
class Library final : public httplib::Server {
 public:
  int listener() const { return svr_sock_; }
  void close_listener() {
    const socket_t socket = svr_sock_.exchange(INVALID_SOCKET);
    if (socket != INVALID_SOCKET) ::close(socket);
  }
  /// One request off `stream`. False: the connection can't be used further. Throws what `setup`
  /// throws, with nothing answered.
  bool answer(httplib::Stream& stream, bool close_after,
              const std::function<void(httplib::Request&)>& setup) {
    bool closed = false;
    return process_request(stream, "", 0, "", 0, close_after, closed, setup) && !closed;
  }
};

}  // namespace

struct HttpServer::Impl {
  explicit Impl(const Settings& settings_in);

  void set_up_library();
  /// One or more requests that have arrived; then back to the poller, or closed.
  void serve(std::unique_ptr<Connection> connection);
  /// False: close it.
  bool serve_one(Connection& connection);
  void prepare(httplib::Request& request, RequestStream& stream, Place& place);
  void answer_here(Connection& connection, const HttpRequest& request, int status,
                   const Error& error);
  void respond(const httplib::Request& request, httplib::Response& response);
  void fill(httplib::Response& response, const HttpRequest& request, HttpReply reply,
            Clock::time_point start);
  void log_access(const HttpRequest& request, int status, const AccessNote& note,
                  Clock::time_point start);

  const Settings settings;
  const int num_places;  // requests at a time that may take long
  std::atomic<int> free_places;
  Api api;
  RequestIds request_ids;
  Library library;
  std::unique_ptr<httplib::ThreadPool> workers;
  std::unique_ptr<Poller> poller;
};

HttpServer::Impl::Impl(const Settings& settings_in)
    : settings(settings_in),
      num_places(settings_in.engine.max_queued + settings_in.engine.max_running),
      free_places(num_places),
      api(settings_in) {
  set_up_library();
}

void HttpServer::Impl::set_up_library() {
  library.set_payload_max_length(static_cast<size_t>(settings.server.max_body_bytes));
  library.set_keep_alive_timeout((settings.server.keep_alive_ms + 999) / 1000);
  // Without SO_REUSEPORT, which would let a second server take half of the connections.
  library.set_socket_options([](socket_t socket) {
    const int on = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  });
  library.set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& res) {
    if (request.method == "POST") return httplib::Server::HandlerResponse::Unhandled;
    respond(request, res);
    return httplib::Server::HandlerResponse::Handled;
  });
  for (const std::string& path : Api::post_paths()) {
    library.Post(path, [this](const httplib::Request& request, httplib::Response& res) {
      respond(request, res);
    });
  }
  // What the library refuses by itself: it has no body yet.
  library.set_error_handler([this](const httplib::Request& request, httplib::Response& res) {
    if (!res.body.empty()) return;
    res.set_content(dump_json(error_json_of_status(res.status)), "application/json");
    HttpRequest about;
    about.id = request.get_header_value("X-Request-Id");
    about.method = request.method;
    about.path = request.path;
    log_access(about, res.status, {}, request.start_time_);
  });
  library.set_post_routing_handler([](const httplib::Request& request, httplib::Response& res) {
    res.set_header("X-Request-Id", request.get_header_value("X-Request-Id"));
  });
}

void HttpServer::Impl::serve(std::unique_ptr<Connection> connection) {
  while (true) {
    bool keep = false;
    try {
      keep = serve_one(*connection);
    } catch (const std::exception& e) {
      log_error(std::string("a connection failed: ") + e.what());
    }
    if (!keep) return poller->close_gently(std::move(connection));
    if (!find_head_end(connection->buffered())) return poller->park(std::move(connection));
  }
}

bool HttpServer::Impl::serve_one(Connection& connection) {
  const std::string_view bytes = connection.buffered();
  const std::optional<size_t> head_size = find_head_end(bytes);
  HttpRequest about;
  if (!head_size) {
    about.id = request_ids.make();
    answer_here(connection, about, 431,
                Error(ErrorCode::kRequestTooLarge, "the request's head is longer than " +
                                                       std::to_string(kMaxHeadBytes) + " bytes"));
    return false;
  }
  if (auto refusal = check_framing(bytes.substr(0, *head_size), settings.server.max_body_bytes)) {
    about.id = request_ids.make();
    answer_here(connection, about, refusal->status, refusal->error);
    return false;
  }

  RequestStream stream(connection);
  Place place(free_places);
  const bool close_after = settings.server.keep_alive_ms == 0 || poller->stopping();
  try {
    const bool usable = library.answer(stream, close_after, [&](httplib::Request& request) {
      about.method = request.method;
      about.path = request.path = Api::canonical_path(request.path);
      about.id = request_ids.accept_or_make(request.get_header_value("X-Request-Id"));
      request.headers.erase("X-Request-Id");
      request.set_header("X-Request-Id", about.id);
      prepare(request, stream, place);
    });
    return usable && !close_after && stream.status() >= 200 && stream.status() < 400;
  } catch (const Error& error) {
    answer_here(connection, about, 0, error);
    return false;
  }
}

/// After the head was parsed, before the body is read.
void HttpServer::Impl::prepare(httplib::Request& request, RequestStream& stream, Place& place) {
  if (request.get_header_value("Expect") == "100-continue") stream.promise_continue();
  // What the library would act on and we don't want: forms, ranges, upgrades, its own 100.
  for (const char* name : {"Expect", "Content-Type", "Range", "Upgrade"}) {
    request.headers.erase(name);
  }
  request.ranges.clear();
  if (request.get_header_value_count("Authorization") > 1) {
    throw Error(ErrorCode::kInvalidRequest, "the header Authorization is given twice");
  }
  api.check_head(request.method, request.path, request.get_header_value("Authorization"));
  if (Api::may_wait(request.method, request.path) && !place.take()) {
    throw Error(ErrorCode::kQueueFull, "the server answers " + std::to_string(num_places) +
                                           " requests already; try again later");
  }
}

/// An answer without the library: the request was refused before it was routed.
void HttpServer::Impl::answer_here(Connection& connection, const HttpRequest& request, int status,
                                   const Error& error) {
  const auto start = Clock::now();
  HttpReply reply = api.error_reply(error, request);
  if (status != 0) reply.status = status;
  std::string text = "HTTP/1.1 " + std::to_string(reply.status) + " " +
                     httplib::status_message(reply.status) +
                     "\r\nConnection: close\r\nContent-Type: " + reply.content_type +
                     "\r\nContent-Length: " + std::to_string(reply.body.size()) +
                     "\r\nX-Request-Id: " + request.id + "\r\n";
  for (const auto& [name, value] : reply.headers) text += name + ": " + value + "\r\n";
  text += "\r\n";
  if (request.method != "HEAD") text += reply.body;
  log_access(request, reply.status, {}, start);
  connection.write_all(text, kWriteTimeout);
}

void HttpServer::Impl::respond(const httplib::Request& request, httplib::Response& response) {
  HttpRequest own;
  own.id = request.get_header_value("X-Request-Id");
  own.method = request.method;
  own.path = request.path;
  own.query = request.params;
  own.body = request.body;
  own.client_gone = request.is_connection_closed;
  fill(response, own, api.handle(own), request.start_time_);
}

void HttpServer::Impl::fill(httplib::Response& response, const HttpRequest& request,
                            HttpReply reply, Clock::time_point start) {
  response.status = reply.status;
  for (const auto& [name, value] : reply.headers) response.set_header(name, value);
  if (!reply.stream) {
    log_access(request, reply.status, *reply.note, start);
    response.set_content(std::move(reply.body), reply.content_type);
    return;
  }
  response.set_chunked_content_provider(
      reply.content_type,
      [stream = std::move(reply.stream)](size_t, httplib::DataSink& sink) {
        bool alive = true;
        stream([&](std::string_view bytes) {
          return alive = alive && sink.write(bytes.data(), bytes.size());
        });
        if (alive) sink.done();
        return alive;
      },
      [this, request, status = reply.status, note = reply.note, start](bool) {
        log_access(request, status, *note, start);
      });
}

void HttpServer::Impl::log_access(const HttpRequest& request, int status, const AccessNote& note,
                                  Clock::time_point start) {
  api.metrics().count_response(Api::route_label(request.path), status);
  const auto ms = std::chrono::duration_cast<milliseconds>(Clock::now() - start).count();
  std::string line = request.id + " " + log_escape(request.method, 16) + " " +
                     log_escape(request.path) + " " + std::to_string(status) + " " +
                     std::to_string(ms) + " ms";
  if (note.prompt_tokens > 0) {
    line += ", " + std::to_string(note.prompt_tokens) + " + " +
            std::to_string(note.completion_tokens) + " tokens";
  }
  log_info(line);
}

// --- HttpServer --------------------------------------------------------------------------------

HttpServer::HttpServer(const Settings& settings) : impl_(std::make_unique<Impl>(settings)) {}

HttpServer::~HttpServer() {
  // Bound, but never run, since the start-up failed: threads that wait must not outlive the pool.
  if (impl_->workers) impl_->workers->shutdown();
  impl_->library.close_listener();
}

int HttpServer::bind() {
  const ServerSettings& server = impl_->settings.server;
  int port = server.port;
  if (port == 0) {
    port = impl_->library.bind_to_any_port(server.host);
  } else if (!impl_->library.bind_to_port(server.host, port)) {
    port = -1;
  }
  if (port < 0) {
    throw Error(ErrorCode::kInvalidSettings,
                "can't listen on " + server.host + ":" + std::to_string(server.port) +
                    ": the address is not this machine's, or the port is taken",
                "port");
  }
  const size_t num_threads =
      static_cast<size_t>(impl_->num_places + impl_->settings.server.num_spare_threads);
  impl_->workers = std::make_unique<httplib::ThreadPool>(num_threads, num_threads, 1024);
  Poller::Options options;
  options.idle_timeout = milliseconds(server.keep_alive_ms);
  impl_->poller = std::make_unique<Poller>(
      impl_->library.listener(), options, [this](std::unique_ptr<Connection> connection) {
        auto shared = std::make_shared<std::unique_ptr<Connection>>(std::move(connection));
        return impl_->workers->enqueue([this, shared] { impl_->serve(std::move(*shared)); });
      });
  return port;
}

void HttpServer::run() {
  impl_->poller->run();
  impl_->workers->shutdown();
  impl_->workers.reset();
}

void HttpServer::set_backend(const Backend& backend) { impl_->api.set_backend(backend); }

void HttpServer::begin_drain() { impl_->api.begin_drain(); }

void HttpServer::stop() { impl_->poller->stop(); }

}  // namespace bicached
