#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "base/hash.h"
#include "base/version.h"
#include "bicached/error.h"
#include "cache/similarity.h"
#include "config/engine_defaults.h"
#include "denoise/torch_denoiser.h"
#include "lab/partial_results.h"
#include "lab/profile.h"
#include "lab/progress.h"

namespace bicached {
namespace {

using Json = nlohmann::ordered_json;

/// A conversation to measure, with the key of its result.
struct Canvas {
  const ProfileConversation* conversation = nullptr;
  PrefixInContext in_context;
  std::string hash;

  /// Rows of its forward: the prefix alone, and all.
  int num_rows() const { return in_context.prefix_len + static_cast<int>(in_context.ids.size()); }
  int ratio() const {
    return ratio_percent(in_context.prefix_len, static_cast<int>(in_context.ids.size()));
  }
};

/// Of all that the result depends on: weights and dtype, ids, where the prefix ends.
std::string hash_of(const PrefixInContext& canvas, const ModelInfo& model) {
  Hasher hasher;
  hasher.add(model.fingerprint);
  hasher.add(
      {reinterpret_cast<const char*>(canvas.ids.data()), canvas.ids.size() * sizeof(TokenId)});
  hasher.add(std::to_string(canvas.prefix_len));
  return hasher.digest().hex();
}

std::vector<Canvas> make_canvases(const ProfileData& data, int num_masks, const ModelInfo& model) {
  std::vector<Canvas> canvases;
  for (const ProfileConversation& conversation : data.conversations) {
    Canvas canvas;
    canvas.conversation = &conversation;
    canvas.in_context = {conversation.chat.ids, conversation.prefix_len()};
    canvas.in_context.ids.insert(canvas.in_context.ids.end(), static_cast<size_t>(num_masks),
                                 model.mask_token);
    canvas.hash = hash_of(canvas.in_context, model);
    canvases.push_back(std::move(canvas));
  }
  return canvases;
}

/// The canvases from `begin` on that one forward takes: up to `max_rows`, at least one.
size_t end_of_batch(const std::vector<const Canvas*>& canvases, size_t begin, int64_t max_rows) {
  int64_t rows = 0;
  size_t end = begin;
  while (end < canvases.size() && (end == begin || rows + canvases[end]->num_rows() <= max_rows)) {
    rows += canvases[end++]->num_rows();
  }
  return end;
}

/// Measures what `results` has not; shows how far it is.
void measure_missing(TorchDenoiser& model, const std::vector<Canvas>& canvases, int64_t max_rows,
                     PartialResults& results) {
  std::vector<const Canvas*> missing;
  for (const Canvas& canvas : canvases) {
    if (!results.find(canvas.conversation->index, canvas.hash)) missing.push_back(&canvas);
  }
  const auto total = static_cast<int64_t>(canvases.size());
  const int64_t done_before = total - static_cast<int64_t>(missing.size());
  Progress progress("profile", total, "conversations");
  progress.show(done_before);
  for (size_t begin = 0; begin < missing.size();) {
    // The pool is empty here, so what is free is what one forward can have.
    const size_t end = end_of_batch(missing, begin, std::min(max_rows, model.free_tokens()));
    std::vector<PrefixInContext> batch;
    for (size_t i = begin; i < end; ++i) batch.push_back(missing[i]->in_context);
    std::vector<std::vector<double>> layers = measure_similarity(model, model.pool(), batch);
    for (size_t i = begin; i < end; ++i) {
      results.add(missing[i]->conversation->index, missing[i]->hash, std::move(layers[i - begin]));
    }
    begin = end;
    progress.show(done_before + static_cast<int64_t>(end));
  }
}

/// Means over the conversations of a ratio, in the order of the file whatever was measured when.
std::vector<RatioSimilarity> mean_by_ratio(const std::vector<Canvas>& canvases,
                                           const PartialResults& results) {
  std::map<int, RatioSimilarity> by_ratio;
  for (const Canvas& canvas : canvases) {
    const std::vector<double>& layers = *results.find(canvas.conversation->index, canvas.hash);
    RatioSimilarity& sum = by_ratio[canvas.ratio()];
    sum.ratio_percent = canvas.ratio();
    ++sum.num_conversations;
    sum.layers.resize(layers.size());
    for (size_t layer = 0; layer < layers.size(); ++layer) sum.layers[layer] += layers[layer];
  }
  std::vector<RatioSimilarity> means;
  for (auto& [ratio, sum] : by_ratio) {
    for (double& layer : sum.layers) layer /= sum.num_conversations;
    means.push_back(std::move(sum));
  }
  return means;
}

Json table_json(const ProfilePlan& plan, const ProfileData& data, const ModelInfo& model,
                const std::vector<RatioSimilarity>& ratios) {
  Json json;
  json["model"] = model.name;
  json["num_layers"] = model.num_layers;
  json["threshold"] = plan.threshold;
  json["measure"] =
      "mean cosine similarity of K and of V, prefix alone against prefix + last user message" +
      (plan.num_masks > 0 ? " + " + std::to_string(plan.num_masks) + " masks" : " (no masks)");
  json["max_length"] = model.max_length;
  json["source"] = "bicached " + std::string(version()) + " profile, " + model.dtype + "; " +
                   describe_source(plan, data);
  json["steps"] = Json::array();
  for (const DepthTable::Step& step : table_steps(ratios, plan.threshold)) {
    json["steps"].push_back({{"min_ratio_percent", step.min_ratio_percent}, {"depth", step.depth}});
  }
  json["similarity"] = Json::array();
  for (const RatioSimilarity& ratio : ratios) {
    Json layers = Json::array();
    for (const double layer : ratio.layers) layers.push_back(std::round(layer * 1e6) / 1e6);
    json["similarity"].push_back({{"ratio_percent", ratio.ratio_percent},
                                  {"conversations", ratio.num_conversations},
                                  {"layers", std::move(layers)}});
  }
  return json;
}

void print_table(const ProfilePlan& plan, const ProfileData& data, const Json& table,
                 const std::vector<RatioSimilarity>& ratios) {
  std::printf("%s; ratios %d to %d %%\n", describe_source(plan, data).c_str(),
              ratios.front().ratio_percent, ratios.back().ratio_percent);
  for (const Json& step : table["steps"]) {
    std::printf("  from %3d %%: %d of %d layers\n", step["min_ratio_percent"].get<int>(),
                step["depth"].get<int>(), table["num_layers"].get<int>());
  }
  std::printf("written to %s; serve with --cache-policy table --depth-table %s\n", plan.out.c_str(),
              plan.out.c_str());
}

}  // namespace

void profile_similarity(const Settings& settings, const ProfilePlan& plan,
                        const ProfileData& data) {
  PartialResults results(plan.out + ".partial");
  const std::unique_ptr<Denoiser> denoiser = load_with_progress(settings);
  auto& model = dynamic_cast<TorchDenoiser&>(*denoiser);
  const std::vector<Canvas> canvases = make_canvases(data, plan.num_masks, model.info());
  const EngineSettings engine = resolve_engine_defaults(settings.engine, model.info());
  measure_missing(model, canvases, engine.max_rows_per_forward, results);
  const std::vector<RatioSimilarity> ratios = mean_by_ratio(canvases, results);
  const Json table = table_json(plan, data, model.info(), ratios);
  write_result(plan.out, table.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  results.remove();
  print_table(plan, data, table, ratios);
}

}  // namespace bicached
