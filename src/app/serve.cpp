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
#include "bicached/engine.h"
#include "bicached/http_server.h"
#include "bicached/load.h"
#include "config/reuse_start.h"

namespace bicached {
namespace {

/// The HTTP server on a thread of its own, stopped and joined however the start-up ends.
class HttpThread {
 public:
  HttpThread(HttpServer& server, ShutdownSignals& signals)
      : server_(server), thread_([this, &signals] {
          try {
            server_.run();
          } catch (const std::exception& error) {
            log_error(std::string("the HTTP server ended: ") + error.what());
            failed_ = true;
          }
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

void announce(const Settings& settings, int port, const std::string& model_id, bool has_chat) {
  const std::string url = local_url(settings.server.host, port);
  const std::string curl = example_curl(settings, url, model_id, has_chat);
  std::printf("bicached serves %s at %s\n%s\n", model_id.c_str(), url.c_str(), curl.c_str());
  std::fflush(stdout);
}

}  // namespace

int run_serve(const Settings& settings) {
  check_model_folder(settings.model.path);
  ShutdownSignals signals;
  HttpServer server(settings);
  const int port = server.bind();
  // A broken folder ends the process here, before anybody could have sent a request.
  const ModelInfo model = inspect_model(settings.model);
  const DecodeSettings defaults = load_decode_defaults(settings, model);
  const CacheSettings cache = load_cache_settings(settings, model);
  const TextTools text = load_text_tools(settings.model.path, model);
  const auto pinned = encode_pinned_prefixes(settings.cache.pinned_prefixes, text, model);

  HttpThread http(server, signals);
  log_info("listening on port " + std::to_string(port) + ", loading " + settings.model.path);
  Engine engine(load_with_progress(settings), settings.engine, cache);
  log_info("requests start with " + describe_plan(cache.start.plan) + ": " + cache.start.reason);
  engine.start([&signals] { signals.request(); });
  for (const std::vector<TokenId>& prefix : pinned) engine.pin_prefix(prefix);
  Backend backend;
  backend.engine = &engine;
  backend.tokenizer = text.tokenizer.get();
  backend.chat_template = text.chat_template.get();
  backend.defaults = defaults;
  backend.model_id = engine.model().name;
  server.set_backend(backend);
  signals.set_ready();
  announce(settings, port, backend.model_id, text.chat_template != nullptr);

  signals.wait();
  log_info("draining");
  server.begin_drain();
  engine.begin_drain();
  engine.stop(std::chrono::milliseconds(settings.server.drain_timeout_ms));
  return http.stop() && !engine.has_failed() ? 0 : 1;
}

}  // namespace bicached
