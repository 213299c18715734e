#include "http/api.h"

#include <algorithm>
#include <charconv>
#include <chrono>

#include "base/log.h"
#include "bicached/error.h"
#include "engine/cache_json.h"
#include "http/errors.h"
#include "http/generate.h"

namespace bicached {
namespace {

constexpr std::string_view kMessagesPath = "/v1/messages";

[[noreturn]] void refuse_query(const std::string& name, const std::string& value,
                               const std::string& allowed, const char* param) {
  throw Error(ErrorCode::kInvalidRequest,
              "the query has " + log_escape(name).substr(0, 64) + "=" +
                  log_escape(value).substr(0, 64) + "; allowed is " + allowed,
              param);
}

}  // namespace

HttpReply json_reply(const OrderedJson& json) {
  HttpReply reply;
  reply.body = dump_json(json);
  return reply;
}

/// `kOpen`: also without a key. `kWaits`: for a body, or for the forward that runs.
enum class RouteKind { kOpen, kQuick, kWaits };
/// Who may use it, of those who have a key.
enum class RouteUsers { kAll, kAdmins };

struct Api::Route {
  std::string_view method;
  std::string_view path;
  HttpReply (Api::*handler)(const HttpRequest&);
  RouteKind kind = RouteKind::kWaits;
  RouteUsers users = RouteUsers::kAll;
};

std::span<const Api::Route> Api::routes() {
  static constexpr Route kRoutes[] = {
      {"GET", "/", &Api::root, RouteKind::kOpen},
      {"GET", "/health", &Api::health, RouteKind::kOpen},
      {"GET", "/ping", &Api::health, RouteKind::kOpen},
      {"GET", "/ready", &Api::ready, RouteKind::kOpen},
      {"GET", "/metrics", &Api::metrics_text, RouteKind::kQuick},
      {"GET", "/version", &Api::version_info, RouteKind::kQuick},
      {"GET", "/config", &Api::config, RouteKind::kQuick, RouteUsers::kAdmins},
      {"GET", "/props", &Api::props, RouteKind::kQuick},
      {"GET", "/slots", &Api::slots, RouteKind::kQuick},
      {"GET", "/model_info", &Api::model_info, RouteKind::kQuick},
      {"GET", "/get_model_info", &Api::model_info, RouteKind::kQuick},
      {"GET", "/server_info", &Api::server_info, RouteKind::kQuick},
      {"GET", "/get_server_info", &Api::server_info, RouteKind::kQuick},
      {"GET", "/v1/models", &Api::models, RouteKind::kQuick},
      {"GET", "/v1/models/{id}", &Api::model, RouteKind::kQuick},
      {"GET", "/v1/cache", &Api::cache, RouteKind::kWaits, RouteUsers::kAdmins},
      {"DELETE", "/v1/cache", &Api::clear_cache, RouteKind::kWaits, RouteUsers::kAdmins},
      {"POST", "/v1/chat/completions", &Api::generate<parse_chat_request>},
      {"POST", "/v1/completions", &Api::generate<parse_text_request>},
      {"POST", "/v1/responses", &Api::generate<parse_responses_request>},
      {"POST", "/v1/messages", &Api::generate<parse_messages_request>},
      {"POST", "/v1/messages/count_tokens", &Api::count_tokens},
      {"POST", "/v1/fim/completions", &Api::generate<parse_fim_request>},
      {"POST", "/infill", &Api::generate<parse_infill_request>},
      {"POST", "/tokenize", &Api::tokenize},
      {"POST", "/detokenize", &Api::detokenize},
      {"POST", "/apply-template", &Api::apply_template},
  };
  return kRoutes;
}

std::string_view Api::find_pattern(std::string_view path) {
  if (path.starts_with(kModelPrefix) && path.size() > kModelPrefix.size()) {
    path = "/v1/models/{id}";
  }
  for (const Route& route : routes()) {
    if (route.path == path) return route.path;
  }
  return "";
}

std::string Api::canonical_path(const std::string& path) {
  std::string clean;
  for (const char c : path) {
    if (c != '/' || !clean.ends_with('/')) clean += c;
  }
  if (clean.size() > 1 && clean.ends_with('/')) clean.pop_back();
  constexpr std::string_view kVersion = "/v1";
  std::vector<std::string> forms{clean, std::string(kVersion) + clean};
  if (clean.starts_with("/v1/")) forms.push_back(clean.substr(kVersion.size()));
  for (const std::string& form : forms) {
    if (!find_pattern(form).empty()) return form;
  }
  return path;
}

const Api::Route* Api::find_route(std::string_view method, std::string_view path) {
  const std::string_view pattern = find_pattern(path);
  if (method == "HEAD") method = "GET";
  for (const Route& route : routes()) {
    if (route.path == pattern && route.method == method) return &route;
  }
  return nullptr;
}

Api::Api(const Settings& settings) : settings_(settings), created_(unix_time()) { read_keys(); }

void Api::read_keys() {
  const ServerSettings& server = settings_.server;
  key_sets_.push_back(
      std::make_unique<const ApiKeys>(ApiKeys::load(server.api_key_file, server.admin_key_file)));
  keys_ = key_sets_.back().get();
}

void Api::set_backend(const Backend& backend) {
  metrics_.set_model(backend.engine->model());
  backend_storage_ = std::make_unique<const Backend>(backend);
  backend_ = backend_storage_.get();
}

const Backend& Api::backend() const {
  const Backend* loaded = backend_;
  if (!loaded) throw Error(ErrorCode::kNotReady, "the model is being loaded");
  return *loaded;
}

std::string Api::route_label(const std::string& path) {
  const std::string_view pattern = find_pattern(path);
  return pattern.empty() ? "other" : std::string(pattern);
}

bool Api::may_wait(const std::string& method, const std::string& path) {
  const Route* route = find_route(method, path);
  return route && route->kind == RouteKind::kWaits;
}

bool Api::is_check(const std::string& method, const std::string& path) {
  const Route* route = find_route(method, path);
  return route && (route->kind == RouteKind::kOpen || route->path == "/metrics");
}

void Api::reload_keys() {
  const ServerSettings& server = settings_.server;
  if (server.api_key_file.empty() && server.admin_key_file.empty()) return;
  try {
    read_keys();
    log_info("the API keys were read anew: " + std::to_string(keys()->count()));
  } catch (const Error& error) {
    log_error(std::string("the API keys stay as they were: ") + error.what());
  }
}

bool Api::salts_by_key() const {
  const std::string& choice = settings_.server.salt_by_key;
  return choice == "on" || (choice == "auto" && keys()->count() > 1);
}

std::string Api::allowed_methods(const std::string& path) {
  const std::string_view pattern = find_pattern(path);
  std::string methods;
  for (const Route& route : routes()) {
    if (route.path != pattern) continue;
    methods += methods.empty() ? "" : ", ";
    methods += route.method == "GET" ? "GET, HEAD" : route.method;
  }
  return methods;
}

std::string Api::check_head(const std::string& method, const std::string& path,
                            const std::vector<std::string_view>& given_keys) const {
  const Route* route = find_route(method, path);
  ApiKeys::Match user;
  if (!route || route->kind != RouteKind::kOpen) user = keys()->check(given_keys);
  if (route && route->users == RouteUsers::kAdmins && !user.is_admin) {
    throw Error(ErrorCode::kForbidden, std::string(route->path) +
                                           " tells of every key's requests and needs an admin key; "
                                           "the setting admin_key_file names them");
  }
  if (route) return salts_by_key() ? user.tenant : "";
  const std::string_view pattern = find_pattern(path);
  if (pattern.empty()) {
    throw Error(ErrorCode::kNotFound, "there is no route " + log_escape(path));
  }
  throw Error(ErrorCode::kMethodNotAllowed, log_escape(method, 16) + " is not possible on " +
                                                std::string(pattern) + "; use " +
                                                allowed_methods(path));
}

HttpReply Api::error_reply(const Error& error, const HttpRequest& request) const {
  const HttpError about = describe_error(error.code());
  HttpReply reply;
  reply.status = about.status;
  OrderedJson body = error_json(error, request.id);
  if (request.path.starts_with(kMessagesPath)) {
    OrderedJson typed;  // Anthropic's form has this besides
    typed["type"] = "error";
    typed.update(body);
    body = std::move(typed);
  }
  reply.body = dump_json(body);
  if (about.status == 500) {
    log_error("request " + request.id + ": " + log_escape(error.what(), 1000));
  }
  if (about.status == 405) reply.headers.emplace_back("Allow", allowed_methods(request.path));
  if (about.status == 401) reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  if (about.retry_after) {
    const Backend* loaded = backend_;
    const int seconds = loaded && loaded->engine ? loaded->engine->retry_after_s() : 1;
    reply.headers.emplace_back("Retry-After", std::to_string(seconds));
  }
  return reply;
}

HttpReply Api::handle(const HttpRequest& request) {
  try {
    const Route* route = find_route(request.method, request.path);
    if (!route) throw Error(ErrorCode::kNotFound, "there is no route " + log_escape(request.path));
    return (this->*route->handler)(request);
  } catch (...) {
    return error_reply(to_error(std::current_exception()), request);
  }
}

// --- What operators ask ------------------------------------------------------------------------

HttpReply Api::health(const HttpRequest&) { return json_reply({{"status", "ok"}}); }

HttpReply Api::ready(const HttpRequest&) {
  refuse_when_draining();
  if (!backend().engine->is_ready()) {
    throw Error(ErrorCode::kNotReady, "the device fails at the moment; it is tried again");
  }
  return json_reply({{"status", "ready"}});
}

HttpReply Api::metrics_text(const HttpRequest&) {
  const Backend* loaded = backend_;
  HttpReply reply;
  reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
  reply.body = metrics_.text(loaded ? &loaded->engine->stats() : nullptr,
                             loaded ? &loaded->engine->cache_stats() : nullptr);
  return reply;
}

// --- Prefix cache ------------------------------------------------------------------------------

HttpReply Api::cache(const HttpRequest& request) {
  int limit = kListedEntries;
  for (const auto& [name, value] : request.query) {
    const char* end = value.data() + value.size();
    const auto [last, error] = std::from_chars(value.data(), end, limit);
    if (name != "limit" || error != std::errc() || last != end || limit < 0 ||
        limit > kMaxListedEntries) {
      refuse_query(name, value, "limit=N, 0 to " + std::to_string(kMaxListedEntries), "limit");
    }
  }
  return json_reply(cache_json(backend().engine->cache_report(limit)));
}

HttpReply Api::clear_cache(const HttpRequest& request) {
  bool forget_probes = false;
  for (const auto& [name, value] : request.query) {
    if (name != "forget" || value != "probes") {
      refuse_query(name, value, "forget=probes", "forget");
    }
    forget_probes = true;
  }
  return json_reply({{"dropped", backend().engine->clear_cache(forget_probes)}});
}

// --- Generation --------------------------------------------------------------------------------

void Api::refuse_when_draining() const {
  const Backend* loaded = backend_;
  if (loaded && loaded->engine->has_failed()) {
    throw Error(ErrorCode::kDeviceFailed, "the device failed; the server ends");
  }
  if (draining_) throw Error(ErrorCode::kDraining, "the server is shutting down");
}

CodecContext Api::codec() {
  return {backend(), settings_.server.alias, settings_.engine.max_queued, unknown_fields_};
}

HttpReply Api::answer(Job job, const HttpRequest& request) {
  if (request.release_body) request.release_body();
  if (!request.tenant.empty()) {
    for (GenerateRequest& canvas : job.canvases) {
      canvas.cache.salt.insert(0, request.tenant + "/");
    }
  }
  const Backend& loaded = backend();
  const GenerateContext context{*loaded.engine,
                                *loaded.tokenizer,
                                metrics_,
                                std::chrono::milliseconds(settings_.server.request_timeout_ms),
                                std::chrono::milliseconds(settings_.server.ping_interval_ms),
                                settings_.engine.max_queued};
  return run_job(std::move(job), request, context);
}

HttpReply Api::count_tokens(const HttpRequest& request) {
  return json_reply({{"input_tokens", count_message_tokens(request.body, codec())}});
}

}  // namespace bicached
