#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <thread>

#include "app/commands.h"
#include "app/example_request.h"
#include "app/model_folder.h"
#include "app/pinned_prefixes.h"
#include "app/shutdown_signals.h"
#include "base/log.h"
#include "base/machine_limits.h"
#include "base/service_manager.h"
#include "base/text_list.h"
#include "bicached/engine.h"
#include "bicached/error.h"
#include "bicached/http_server.h"
#include "bicached/load.h"
#include "config/engine_defaults.h"
#include "config/reuse_start.h"

namespace bicached {
namespace {

/// The HTTP server on a thread of its own, stopped and joined however the start-up ends.
class HttpThread {
 public:
  HttpThread(HttpServer& server, ShutdownSignals& signals)
      : server_(server), thread_([this, &signals] {
          failed_ = !contain("the HTTP server ended", [this] { server_.run(); });
          signals.request();
        }) {}
  ~HttpThread() { stop(); }

  /// Whether it ended without a failure.
  bool stop() {
    if (thread_.joinable()) {
      server_.stop();
      thread_.join();
    }
    return !failed_;
  }

 private:
  HttpServer& server_;
  bool failed_ = false;  // written by the thread, read after join
  std::thread thread_;
};

std::string local_urls(const Settings& settings, int port) {
  std::vector<std::string> urls;
  for (const std::string& host : settings.server.host) urls.push_back(local_url(host, port));
  return joined(urls);
}

void announce(const Settings& settings, int port, const std::string& model_id, bool has_chat) {
  const std::string urls = local_urls(settings, port);
  const std::string first = local_url(settings.server.host.front(), port);
  const std::string curl = example_curl(settings, first, model_id, has_chat);
  std::printf("bicached serves %s at %s\n%s\n", model_id.c_str(), urls.c_str(), curl.c_str());
  std::fflush(stdout);
}

/// Each connection is an open file, and the usual soft limit of 1,024 is less than the server
/// takes.
void raise_open_files_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

/// Fewer threads where only few can be started (a container's or a service's limit of tasks).
/// Throws kInvalidSettings where they are too few to serve with.
void fit_threads(Settings& settings) {
  constexpr int kLeastHttp = 3;  // one request, /health, one that is refused
  constexpr int kOthers = 8;     // signals, poller, engine, what libraries start
  const int places = settings.engine.max_queued + settings.engine.max_running;
  // One a connection is enough, however long the queue.
  const int http = std::min(places + settings.server.num_spare_threads, kMaxConnections);
  int compute = choose_num_threads(settings.model.num_threads);
  // The thread that loads and the one that decodes have helpers of their own.
  const auto helpers = [&] { return 2 * (compute - 1); };
  const int startable = count_startable_threads(http + helpers() + kOthers);
  if (startable < http + helpers() + kOthers) {
    compute = std::clamp(startable / 8, 1, compute);
    settings.model.num_threads = compute;
    settings.server.max_threads = std::max(1, startable - helpers() - kOthers);
    log_warn("only " + std::to_string(startable) +
             " more threads can be started: " + std::to_string(compute) + " compute");
  }
  if (startable - helpers() - kOthers < kLeastHttp) {
    throw Error(ErrorCode::kInvalidSettings,
                "only " + std::to_string(startable) + " more threads can be started, and " +
                    std::to_string(kLeastHttp + helpers() + kOthers) +
                    " are needed; raise the limit of tasks (docker --pids-limit, TasksMax of "
                    "systemd, ulimit -u)");
  }
}

/// The server is not ready before they are.
void warm(Engine& engine, const std::vector<std::vector<TokenId>>& pinned_prefixes) {
  name_errors("pinned_prefixes", [&] {
    std::vector<std::future<void>> warmed;
    for (const auto& prefix : pinned_prefixes) warmed.push_back(engine.warm_prefix(prefix, true));
    for (std::future<void>& one : warmed) one.get();
  });
}

int run_serve(const Settings& given) {
  Settings settings = given;
  raise_open_files_limit();
  // A broken folder ends the process here, before anybody could have sent a request.
  const ModelInfo model = inspect_model(settings.model);
  settings.engine = resolve_engine_defaults(settings.engine, model);
  fit_threads(settings);
  HttpServer server(settings);
  ShutdownSignals signals([&server] {
    log_reopen();
    server.reload_keys();
  });
  const int port = server.bind();
  const DecodeSettings defaults = load_decode_defaults(settings, model);
  const CacheSettings cache = load_cache_settings(settings, model);
  const TextTools text = load_text_tools(settings.model.path, model);
  const auto pinned = encode_pinned_prefixes(settings.cache, text, model);

  HttpThread http(server, signals);
  log_info("listening on " + local_urls(settings, port) + ", loading " + settings.model.path);
  notify_service_manager("STATUS=loading the model");
  Engine engine(load_with_progress(settings), settings.engine, cache);
  log_info("runs with " + describe(read_machine_limits()) + "; " +
           std::to_string(choose_num_threads(settings.model.num_threads)) + " threads compute, " +
           std::to_string(cache.cache_bytes >> 20) + " MiB are for stored prefixes; up to " +
           std::to_string(settings.engine.max_running) + " canvases run together, " +
           std::to_string(settings.engine.max_rows_per_forward) + " rows a forward");
  log_info("requests start with " + describe_plan(cache.start.plan) + ": " + cache.start.reason);
  engine.start([&signals] { signals.request(); });
  warm(engine, pinned);
  engine.cache_report(0);  // the engine's thread runs, and has what it computes with
  Backend backend;
  backend.engine = &engine;
  backend.tokenizer = text.tokenizer.get();
  backend.chat_template = text.chat_template.get();
  backend.defaults = defaults;
  backend.model_id = engine.model().name;
  server.set_backend(backend);
  signals.set_ready();
  notify_service_manager("READY=1\nSTATUS=serving");
  announce(settings, port, backend.model_id, text.chat_template != nullptr);

  signals.wait();
  log_info("draining");
  notify_service_manager("STOPPING=1\nSTATUS=draining");
  server.begin_drain();
  engine.begin_drain();
  engine.stop(std::chrono::milliseconds(settings.server.drain_timeout_ms));
  return http.stop() && !engine.has_failed() ? 0 : 1;
}

}  // namespace

Command serve_command() { return {"serve", "The server", run_serve}; }

}  // namespace bicached
