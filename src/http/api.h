#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bicached/error.h"
#include "bicached/http_server.h"
#include "bicached/settings.h"
#include "http/answer_writer.h"
#include "http/api_keys.h"
#include "http/exchange.h"
#include "http/job.h"
#include "http/metrics.h"
#include "http/name_log.h"

namespace bicached {

HttpReply json_reply(const OrderedJson& json);

/// The routes, without sockets: a request in, a reply out (docs/api.md). Any thread.
class Api {
 public:
  explicit Api(const Settings& settings);

  void set_backend(const Backend& backend);
  void begin_drain() { draining_ = true; }
  bool is_draining() const { return draining_; }
  bool needs_key() const { return keys()->required(); }
  /// The key files anew. Where one can't be used the keys stay, and the log says why. One thread at
  /// a time.
  void reload_keys();

  /// What a request line and the keys say, before the body is read: throws kNotFound,
  /// kMethodNotAllowed, kInvalidApiKey, kForbidden. Returns the request's tenant.
  std::string check_head(const std::string& method, const std::string& path,
                         const std::vector<std::string_view>& given_keys) const;
  /// The path that the table has: without doubled slashes and one at the end, and with or without
  /// /v1 in front, which clients' base URLs have or lack. An unknown path stays as it is.
  static std::string canonical_path(const std::string& path);
  /// The methods of a path, for the Allow header: "GET, HEAD, DELETE".
  static std::string allowed_methods(const std::string& path);
  /// Whether the answer may wait for a body or for the engine, so that it needs one of the places
  /// that are kept apart from what must always answer.
  static bool may_wait(const std::string& method, const std::string& path);
  /// Whether this is asked by what watches the server, again and again.
  static bool is_check(const std::string& method, const std::string& path);
  /// The route's pattern for metrics; "other" for unknown paths.
  static std::string route_label(const std::string& path);

  /// Throws nothing: a failure is a reply.
  HttpReply handle(const HttpRequest& request);
  /// As `handle` makes it; logs defects.
  HttpReply error_reply(const Error& error, const HttpRequest& request) const;

  Metrics& metrics() { return metrics_; }

 private:
  struct Route;
  static std::span<const Route> routes();
  /// The pattern of the routes that a path is one of; empty: there is none.
  static std::string_view find_pattern(std::string_view path);
  /// Null: the path has no such method. HEAD is GET.
  static const Route* find_route(std::string_view method, std::string_view path);

  HttpReply root(const HttpRequest&);
  HttpReply health(const HttpRequest&);
  HttpReply ready(const HttpRequest&);
  HttpReply metrics_text(const HttpRequest&);
  HttpReply version_info(const HttpRequest&);
  HttpReply config(const HttpRequest&);
  HttpReply props(const HttpRequest&);
  HttpReply slots(const HttpRequest&);
  HttpReply model_info(const HttpRequest&);
  HttpReply server_info(const HttpRequest&);
  HttpReply models(const HttpRequest&);
  HttpReply model(const HttpRequest&);
  HttpReply cache(const HttpRequest&);
  HttpReply clear_cache(const HttpRequest&);
  HttpReply count_tokens(const HttpRequest&);
  HttpReply tokenize(const HttpRequest&);
  HttpReply detokenize(const HttpRequest&);
  HttpReply apply_template(const HttpRequest&);

  using Parse = Job (*)(const std::string& body, const CodecContext& context);
  template <Parse kParse>
  HttpReply generate(const HttpRequest& request) {
    refuse_when_draining();
    return answer(kParse(request.body, codec()), request);
  }
  HttpReply answer(Job job, const HttpRequest& request);

  /// Throws kNotReady.
  const Backend& backend() const;
  CodecContext codec();
  OrderedJson describe_model(const std::string& id) const;
  void refuse_when_draining() const;
  void read_keys();
  const ApiKeys* keys() const { return keys_; }
  bool salts_by_key() const;

  static constexpr std::string_view kModelPrefix = "/v1/models/";

  const Settings settings_;
  // All there ever were: a request may still read an old one.
  std::vector<std::unique_ptr<const ApiKeys>> key_sets_;
  std::atomic<const ApiKeys*> keys_{nullptr};
  const int64_t created_;
  Metrics metrics_;
  NameLog unknown_fields_;
  std::unique_ptr<const Backend> backend_storage_;
  std::atomic<const Backend*> backend_{nullptr};
  std::atomic<bool> draining_{false};
};

}  // namespace bicached
