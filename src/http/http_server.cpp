#include "bicached/http_server.h"

#include <algorithm>
#include <atomic>

#include "base/free_memory.h"
#include "base/log.h"
#include "bicached/error.h"
#include "http/api.h"
#include "http/cors.h"
#include "http/http_library.h"
#include "http/listeners.h"
#include "http/poller.h"
#include "http/request_id.h"

namespace bicached {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// What a body takes once it is read: JSON is many times its text.
constexpr size_t kParsedToText = 4;

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

/// What a request offers as keys. Throws kInvalidRequest where it is not one request's.
std::vector<std::string_view> offered_keys(const RequestHead& head) {
  std::vector<std::string_view> keys;
  std::string_view authorization;
  for (const auto& [name, value] : head.headers) {
    if (name == "authorization") {
      if (!authorization.empty() && authorization != value) {
        throw Error(ErrorCode::kInvalidRequest,
                    "the header Authorization is given twice with different values");
      }
      authorization = value;
      if (const std::string_view key = bearer_key(value); !key.empty()) keys.push_back(key);
    } else if (name == "x-api-key" || name == "api-key") {
      keys.emplace_back(value);
    }
  }
  return keys;
}

}  // namespace

struct HttpServer::Impl {
  explicit Impl(const Settings& settings_in);

  /// How many threads answer requests; with few allowed there are fewer places.
  int fit_threads();
  /// One request that has arrived; then the connection is the poller's again.
  void serve(std::unique_ptr<Connection> connection) noexcept;
  /// False: close it.
  bool serve_one(Connection& connection);
  bool answer(Connection& connection, ArrivedRequest& arrived, HttpRequest& request);
  bool refuse(Connection& connection, const ArrivedRequest& arrived, const HttpRequest& request,
              const HttpRefusal& refusal);
  bool answer_options(Connection& connection, const ArrivedRequest& arrived,
                      const HttpRequest& request);
  bool write_here(Connection& connection, const ArrivedRequest& arrived, const HttpRequest& request,
                  const HttpReply& reply, bool keep);
  void log_access(const HttpRequest& request, int status, const AccessNote& note,
                  Clock::time_point start);
  bool keeps_alive(const RequestHead& head) const {
    return head.keeps_alive && settings.server.keep_alive_ms > 0 && !poller->stopping() &&
           !api.is_draining();
  }

  const Settings settings;
  int num_places;  // requests at a time that may take long
  std::atomic<int> free_places;
  Api api;
  const Cors cors;
  RequestIds request_ids;
  std::unique_ptr<Listeners> listeners;
  std::unique_ptr<WorkerPool> workers;
  std::unique_ptr<Poller> poller;
};

HttpServer::Impl::Impl(const Settings& settings_in)
    : settings(settings_in),
      num_places(settings_in.engine.max_queued + settings_in.engine.max_running),
      free_places(num_places),
      api(settings_in),
      cors(settings_in.server.cors_origins) {}

int HttpServer::Impl::fit_threads() {
  int spare = settings.server.num_spare_threads;
  num_places = std::min(num_places, kMaxConnections - spare);
  const int wanted = num_places + spare;
  const int allowed = settings.server.max_threads;
  if (allowed != 0 && allowed < wanted) {
    spare = std::clamp(allowed / 2, 1, spare);
    num_places = allowed - spare;
    log_warn("only " + std::to_string(allowed) + " of " + std::to_string(wanted) +
             " HTTP threads can be started; " + std::to_string(num_places) +
             " requests at a time are answered");
  }
  free_places = num_places;
  return num_places + spare;
}

void HttpServer::Impl::serve(std::unique_ptr<Connection> connection) noexcept {
  bool keep = false;
  const size_t body_bytes = connection->reader().num_body_bytes();
  contain("a connection failed", [&] { keep = serve_one(*connection); });
  poller->freed(kParsedToText * body_bytes);
  poller->give_back(std::move(connection), !keep);
}

bool HttpServer::Impl::serve_one(Connection& connection) {
  ArrivedRequest arrived = connection.reader().take();
  HttpRequest request;
  request.method = arrived.head.method;
  request.path = Api::canonical_path(path_of_target(arrived.head.target));
  request.id = request_ids.accept_or_make(std::string(arrived.head.header("x-request-id")));
  request.tenant = arrived.tenant;
  if (arrived.refusal) return refuse(connection, arrived, request, *arrived.refusal);
  if (request.method == "OPTIONS") return answer_options(connection, arrived, request);
  Place place(free_places);
  if (Api::may_wait(request.method, request.path) && !place.take()) {
    const Error full(ErrorCode::kQueueFull, "the server answers " + std::to_string(num_places) +
                                                " requests already; try again later");
    return refuse(connection, arrived, request, {0, full});
  }
  return answer(connection, arrived, request);
}

bool HttpServer::Impl::answer(Connection& connection, ArrivedRequest& arrived,
                              HttpRequest& request) {
  const auto start = Clock::now();
  const size_t body_bytes = arrived.body.size();
  request.body = std::move(arrived.body);
  request.client_state = [&connection](bool is_streamed) {
    if (connection.is_broken()) return ClientState::kGone;
    if (!connection.peer_closed()) return ClientState::kThere;
    // Something is sent to the client of a stream, and an error comes back from one that is gone.
    if (is_streamed) return ClientState::kSendsNoMore;
    // Of a plain answer nothing can be sent before it is there.
    return connection.closed_with_request() ? ClientState::kThere : ClientState::kGone;
  };
  request.release_body = [this, &connection, &request, body_bytes] {
    free_text(request.body);
    poller->release_body(connection);
    poller->freed(kParsedToText * body_bytes);
  };
  LibraryRequest asked{connection,
                       arrived.head,
                       keeps_alive(arrived.head),
                       settings.server.keep_alive_ms / 1000,
                       cors.headers(arrived.head),
                       {},
                       {}};
  asked.headers.emplace_back("X-Request-Id", request.id);
  asked.handle = [&](const std::multimap<std::string, std::string>& query) {
    request.query = query;
    return api.handle(request);
  };
  size_t answer_bytes = 0;
  asked.done = [&](const HttpReply& reply) {
    answer_bytes = reply.body.size();
    // The library calls this from a destructor.
    contain("a request is missing in the log",
            [&] { log_access(request, reply.status, *reply.note, start); });
  };
  const bool keeps = answer_with_library(asked);
  poller->freed(answer_bytes);
  return keeps;
}

/// An answer without the library: the request was refused before it was routed.
bool HttpServer::Impl::refuse(Connection& connection, const ArrivedRequest& arrived,
                              const HttpRequest& request, const HttpRefusal& refusal) {
  HttpReply reply = api.error_reply(refusal.error, request);
  if (refusal.status != 0) reply.status = refusal.status;
  reply.note->refusal = refusal.error.what();
  return write_here(connection, arrived, request, reply, false);
}

bool HttpServer::Impl::answer_options(Connection& connection, const ArrivedRequest& arrived,
                                      const HttpRequest& request) {
  HttpReply reply;
  reply.content_type.clear();
  const std::string own = Api::allowed_methods(request.path);
  reply.headers.emplace_back("Allow", own.empty() ? "OPTIONS" : own + ", OPTIONS");
  if (Cors::is_preflight(arrived.head)) reply.headers = cors.preflight_headers(arrived.head);
  return write_here(connection, arrived, request, reply, keeps_alive(arrived.head));
}

bool HttpServer::Impl::write_here(Connection& connection, const ArrivedRequest& arrived,
                                  const HttpRequest& request, const HttpReply& reply, bool keep) {
  const auto start = Clock::now();
  std::string text =
      "HTTP/1.1 " + std::to_string(reply.status) + " " + reason_phrase(reply.status) + "\r\n";
  const auto add = [&](const std::string& name, const std::string& value) {
    text.append(name).append(": ").append(value).append("\r\n");
  };
  if (!keep) add("Connection", "close");
  if (keep && arrived.head.is_http_1_0) add("Connection", "keep-alive");
  if (!reply.body.empty()) add("Content-Type", reply.content_type);
  add("Content-Length", std::to_string(reply.body.size()));
  add("X-Request-Id", request.id);
  for (const auto& [name, value] : reply.headers) add(name, value);
  for (const auto& [name, value] : cors.headers(arrived.head)) add(name, value);
  text += "\r\n";
  if (request.method != "HEAD") text += reply.body;
  log_access(request, reply.status, *reply.note, start);
  return connection.send(text) && keep;
}

void HttpServer::Impl::log_access(const HttpRequest& request, int status, const AccessNote& note,
                                  Clock::time_point start) {
  api.metrics().count_response(Api::route_label(request.path), status);
  const auto ms = std::chrono::duration_cast<milliseconds>(Clock::now() - start).count();
  const bool is_read = !request.method.empty();  // else it was no request line
  std::string line = request.id + " " + (is_read ? log_escape(request.method, 16) : "-") + " " +
                     (is_read ? log_escape(request.path) : "-") + " " + std::to_string(status) +
                     " " + std::to_string(ms) + " ms";
  if (note.prompt_tokens > 0) {
    line += ", " + std::to_string(note.prompt_tokens) + " + " +
            std::to_string(note.completion_tokens) + " tokens";
  }
  if (!note.refusal.empty()) line += ", " + log_escape(note.refusal);
  // What asks every second whether the server is there would hide everything else.
  const bool is_check =
      Api::is_check(request.method, request.path) && (status < 400 || status == 503);
  log_line(is_check ? LogLevel::kDebug : LogLevel::kInfo, line);
}

// --- HttpServer --------------------------------------------------------------------------------

HttpServer::HttpServer(const Settings& settings) : impl_(std::make_unique<Impl>(settings)) {}

HttpServer::~HttpServer() {
  // Bound, but never run, since the start-up failed: threads that wait must not outlive the pool.
  if (impl_->workers) impl_->workers->shut_down();
}

int HttpServer::bind() {
  const ServerSettings& server = impl_->settings.server;
  impl_->listeners = std::make_unique<Listeners>(server.host, server.port);
  if (!impl_->listeners->open_host().empty() && !impl_->api.needs_key()) {
    log_warn(
        "host " + impl_->listeners->open_host() +
        " can be reached from other machines, and no API key is needed; api_key_file sets one");
  }
  const int num_threads = impl_->fit_threads();
  Poller::Options options;
  options.idle_timeout = milliseconds(server.keep_alive_ms);
  options.max_body_bytes = server.max_body_bytes;
  options.max_connections = kMaxConnections;
  // A connection has one request at a time, so that there is room for each.
  impl_->workers = std::make_unique<WorkerPool>(num_threads, options.max_connections);
  impl_->poller = std::make_unique<Poller>(
      impl_->listeners->fds(), options,
      [this](ArrivedRequest& request) {
        if (request.head.method == "OPTIONS") return;  // a browser's question brings no key
        request.tenant = impl_->api.check_head(
            request.head.method, Api::canonical_path(path_of_target(request.head.target)),
            offered_keys(request.head));
      },
      [this](std::unique_ptr<Connection> connection) {
        auto shared = std::make_shared<std::unique_ptr<Connection>>(std::move(connection));
        return impl_->workers->enqueue([this, shared] { impl_->serve(std::move(*shared)); });
      });
  return impl_->listeners->port();
}

void HttpServer::run() {
  impl_->poller->run([this] { impl_->listeners->close(); });
  impl_->workers->shut_down();
  impl_->workers.reset();
}

void HttpServer::set_backend(const Backend& backend) { impl_->api.set_backend(backend); }

void HttpServer::reload_keys() { impl_->api.reload_keys(); }

void HttpServer::begin_drain() { impl_->api.begin_drain(); }

void HttpServer::stop() { impl_->poller->stop(); }

}  // namespace bicached
