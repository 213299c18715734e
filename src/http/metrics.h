#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bicached/engine.h"

namespace bicached {

/// Of a finished request, over its canvases.
struct RequestTotals {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  std::vector<double> queued_s;
  std::vector<double> first_token_s;
  std::vector<double> between_tokens_s;  // of each canvas, on average
  std::vector<double> cache_depths;      // of canvases that took a prefix from the cache, in layers
};

/// Numbers of the HTTP side, and the Prometheus text with the engine's. Any thread.
class Metrics {
 public:
  Metrics();
  ~Metrics();

  /// Once, before the first request is finished: what a request cost is told by model.
  void set_model(const ModelInfo& model);
  /// `route` from the route table, never a client's path: labels live for ever.
  void count_response(const std::string& route, int status);
  void finish_request(const RequestTotals& totals, double seconds);
  /// The text of /metrics. `engine` may be null: not loaded yet.
  std::string text(const EngineStats* engine, const CacheStats* cache) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bicached
