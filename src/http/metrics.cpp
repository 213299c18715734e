#include "http/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <optional>
#include <span>

#include "base/log.h"
#include "base/version.h"
#include "http/process_metrics.h"

namespace bicached {
namespace {

using prometheus::MetricFamily;

constexpr double kSeconds[] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                               1,     2.5,  5,     10,   25,  60,   300};
constexpr double kShortSeconds[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
                                    0.05,   0.1,   0.25,   0.5,   1,    2.5};
constexpr double kLayers[] = {0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 64};

/// A gauge that is 1, for what its labels say.
void add_info(prometheus::Registry& registry, const char* name, const char* help,
              const prometheus::Labels& labels) {
  prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels).Set(1);
}

/// A number of the engine or the prefix cache as Prometheus wants it.
template <class Stats>
struct StatsMetric {
  const char* name;
  const char* help;
  std::atomic<int64_t> Stats::* value;
  double scale = 1.0;
};

constexpr StatsMetric<EngineStats> kEngineMetrics[] = {
    {"bicached_running", "Canvases being decoded.", &EngineStats::running},
    {"bicached_queued", "Canvases waiting.", &EngineStats::queued},
    {"bicached_slab_tokens_used", "Positions of the K/V pool in use.",
     &EngineStats::slab_tokens_used},
    {"bicached_slab_tokens_capacity", "Positions of the K/V pool.",
     &EngineStats::slab_tokens_capacity},
    {"bicached_forwards_total", "Passes of the model.", &EngineStats::forwards},
    {"bicached_rows_total", "Rows in these passes.", &EngineStats::rows},
    {"bicached_row_layers_total", "Rows times the layers they ran.", &EngineStats::row_layers},
    {"bicached_logit_rows_total", "Rows whose logits were computed.", &EngineStats::logit_rows},
    {"bicached_tokens_committed_total", "Positions decided, end tokens included.",
     &EngineStats::tokens_committed},
    {"bicached_refreshes_total", "Forwards of canvases that recomputed more than the active block.",
     &EngineStats::refreshes},
    {"bicached_cancelled_total", "Canvases ended by their client or by a stop string.",
     &EngineStats::cancelled},
    {"bicached_failed_steps_total", "Forwards that failed.", &EngineStats::failed_steps},
    {"bicached_busy_seconds_total", "Time in forwards.", &EngineStats::busy_us, 1e-6},
};

constexpr StatsMetric<CacheStats> kCacheMetrics[] = {
    {"bicached_cache_entries", "Stored prefixes.", &CacheStats::entries},
    {"bicached_cache_bytes", "Bytes of stored prefixes.", &CacheStats::bytes},
    {"bicached_cache_budget_bytes", "Bytes they may take.", &CacheStats::budget_bytes},
    {"bicached_cache_hits_total", "Canvases that took a stored prefix, at a depth above 0.",
     &CacheStats::hits},
    {"bicached_cache_misses_total",
     "Canvases that took none: not stored, not proven, or nothing shared.", &CacheStats::misses},
    {"bicached_cache_entries_made_total", "Prefixes stored.", &CacheStats::made},
    {"bicached_cache_evictions_total", "Prefixes dropped to make room.", &CacheStats::evictions},
    {"bicached_cached_tokens_total", "Prompt tokens taken from the cache.",
     &CacheStats::cached_tokens},
    {"bicached_saved_row_layers_total", "Rows times layers that the cache made unnecessary.",
     &CacheStats::saved_row_layers},
    {"bicached_probes_total", "Requests probed to the end.", &CacheStats::probes},
    {"bicached_probe_checks_total", "Decisions of probes compared with the request's.",
     &CacheStats::probe_checks},
    {"bicached_probe_disagreements_total", "Probed requests that would have decided another token.",
     &CacheStats::probe_disagreements},
    {"bicached_probe_row_layers_total", "Rows times layers run for probes alone.",
     &CacheStats::probe_row_layers},
};

template <class Stats>
MetricFamily family_of(const StatsMetric<Stats>& about, const Stats& stats) {
  const double value = static_cast<double>((stats.*about.value).load()) * about.scale;
  return make_metric(about.name, about.help, value);
}

}  // namespace

/// What requests cost, by model.
struct ModelMetrics {
  prometheus::Registry& registry;
  const std::string model;

  prometheus::Counter& prompt_tokens =
      counter("bicached_prompt_tokens_total", "Prompt tokens of accepted requests.");
  prometheus::Counter& completion_tokens =
      counter("bicached_completion_tokens_total", "Tokens answered, before the end token.");
  prometheus::Histogram& queued =
      histogram("bicached_queue_seconds",
                "Time from submit to admission, of canvases that answered.", kSeconds);
  prometheus::Histogram& first_token = histogram(
      "bicached_first_token_seconds", "Time from submit to the first final token.", kSeconds);
  prometheus::Histogram& between_tokens =
      histogram("bicached_inter_token_seconds",
                "Time between a token and the next, of a canvas, on average.", kShortSeconds);
  prometheus::Histogram& end_to_end =
      histogram("bicached_request_seconds", "Time of a whole generation request.", kSeconds);
  prometheus::Histogram& cache_depth =
      histogram("bicached_cache_depth",
                "Layers that took their prefix from the cache, of requests that hit.", kLayers);

  prometheus::Counter& counter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(
        {{"model", model}});
  }
  prometheus::Histogram& histogram(const char* name, const char* help,
                                   std::span<const double> bounds) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(
        {{"model", model}}, prometheus::Histogram::BucketBoundaries(bounds.begin(), bounds.end()));
  }
};

struct Metrics::Impl {
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& responses = prometheus::BuildCounter()
                                                           .Name("bicached_http_responses_total")
                                                           .Help("Responses by route and status.")
                                                           .Register(registry);
  std::optional<ModelMetrics> of_model;
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {
  add_info(impl_->registry, "bicached_build_info", "The program.",
           {{"version", version()}, {"compiler", compiler()}});
}
Metrics::~Metrics() = default;

void Metrics::set_model(const ModelInfo& model) {
  add_info(impl_->registry, "bicached_model_info", "The model that is served.",
           {{"model", model.name},
            {"family", model.family},
            {"device", model.device},
            {"dtype", model.dtype}});
  impl_->of_model.emplace(impl_->registry, model.name);
}

void Metrics::count_response(const std::string& route, int status) {
  impl_->responses.Add({{"route", route}, {"status", std::to_string(status)}}).Increment();
}

void Metrics::finish_request(const RequestTotals& totals, double seconds) {
  if (!impl_->of_model) return;
  ModelMetrics& metrics = *impl_->of_model;
  metrics.prompt_tokens.Increment(static_cast<double>(totals.prompt_tokens));
  metrics.completion_tokens.Increment(static_cast<double>(totals.completion_tokens));
  for (double s : totals.queued_s) metrics.queued.Observe(s);
  for (double s : totals.first_token_s) metrics.first_token.Observe(s);
  for (double s : totals.between_tokens_s) metrics.between_tokens.Observe(s);
  for (double depth : totals.cache_depths) metrics.cache_depth.Observe(depth);
  metrics.end_to_end.Observe(seconds);
}

std::string Metrics::text(const EngineStats* engine, const CacheStats* cache) const {
  std::vector<MetricFamily> families = impl_->registry.Collect();
  if (engine) {
    for (const auto& about : kEngineMetrics) families.push_back(family_of(about, *engine));
  }
  if (cache) {
    for (const auto& about : kCacheMetrics) families.push_back(family_of(about, *cache));
  }
  families.push_back(make_metric("bicached_log_lines_dropped_total",
                                 "Log lines that were lost because nobody read them.",
                                 static_cast<double>(num_dropped_log_lines())));
  for (MetricFamily& family : process_metrics()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace bicached
