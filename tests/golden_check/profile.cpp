// The offline profile: similarity of a prefix's K and V alone and in context, depth tables of it.
#include "cache/similarity.h"

#include <cmath>
#include <map>
#include <sstream>

#include "denoise/torch_denoiser.h"
#include "golden_check/checkpoints.h"
#include "golden_check/golden_case.h"
#include "golden_check/report.h"

namespace {

using namespace bicached;
using nlohmann::json;
namespace fs = std::filesystem;

/// Our similarity by layer of a conversation of the file.
std::vector<double> measure(const json& conversation, TorchDenoiser& model) {
  PrefixInContext canvas;
  canvas.ids = conversation.at("prefix_ids").get<std::vector<TokenId>>();
  canvas.prefix_len = static_cast<int>(canvas.ids.size());
  for (const json& id : conversation.at("user_ids")) canvas.ids.push_back(id);
  const int ratio = ratio_percent(canvas.prefix_len, static_cast<int>(canvas.ids.size()));
  if (ratio != conversation.at("ratio")) {
    throw Mismatch{"the ratio is " + std::to_string(ratio) + ", expected " +
                   conversation.at("ratio").dump()};
  }
  return measure_similarity(model, model.pool(), {&canvas, 1}).front();
}

void expect_close(const std::vector<double>& got, const std::vector<double>& want) {
  constexpr double kTolerance = 1e-4;
  if (got.size() != want.size()) throw Mismatch{"another number of layers"};
  for (size_t layer = 0; layer < got.size(); ++layer) {
    if (std::abs(got[layer] - want[layer]) <= kTolerance) continue;
    std::ostringstream text;
    text << "similarity of layer " << layer << " is " << got[layer] << ", expected " << want[layer];
    throw Mismatch{text.str()};
  }
}

std::vector<RatioSimilarity> means_by_ratio(
    const std::map<int, std::vector<std::vector<double>>>& all) {
  std::vector<RatioSimilarity> ratios;
  for (const auto& [ratio, conversations] : all) {
    RatioSimilarity mean{ratio, static_cast<int>(conversations.size()), {}};
    mean.layers.resize(conversations.front().size());
    for (const std::vector<double>& one : conversations) {
      for (size_t layer = 0; layer < one.size(); ++layer) {
        mean.layers[layer] += one[layer] / static_cast<double>(conversations.size());
      }
    }
    ratios.push_back(std::move(mean));
  }
  return ratios;
}

void expect_steps(const std::vector<DepthTable::Step>& steps, const json& want) {
  json got = json::object();
  for (const DepthTable::Step& step : steps)
    got[std::to_string(step.min_ratio_percent)] = step.depth;
  if (got != want) throw Mismatch{"the table is " + got.dump() + ", expected " + want.dump()};
}

}  // namespace

void check_profile(const fs::path& folder, Report& report) {
  if (!fs::exists(folder / "profile.json")) return;
  const json profile = read_json(folder / "profile.json");
  Checkpoints checkpoints(folder / "checkpoints");
  auto& model = dynamic_cast<TorchDenoiser&>(*checkpoints.find(profile.at("checkpoint"), "llada"));
  const std::string name = folder.filename().string() + "/profile/";
  const auto needs_float32 = [&] {
    if (model.info().dtype != "float32") throw MissingFeature{"a tolerance for bfloat16"};
  };
  std::map<int, std::vector<std::vector<double>>> by_ratio;
  int index = 0;
  for (const json& conversation : profile.at("conversations")) {
    run_case(name + std::to_string(index++), report, [&] {
      needs_float32();
      std::vector<double> layers = measure(conversation, model);
      expect_close(layers, conversation.at("similarity").get<std::vector<double>>());
      by_ratio[conversation.at("ratio")].push_back(std::move(layers));
    });
  }
  const std::vector<RatioSimilarity> ratios = means_by_ratio(by_ratio);
  for (const json& mean : profile.at("mean_similarity")) {
    run_case(name + "mean of ratio " + mean.at("ratio").dump(), report, [&] {
      needs_float32();
      for (const RatioSimilarity& ratio : ratios) {
        if (ratio.ratio_percent != mean.at("ratio")) continue;
        return expect_close(ratio.layers, mean.at("similarity").get<std::vector<double>>());
      }
      throw Mismatch{"no conversation has this ratio"};
    });
  }
  for (const auto& [threshold, table] : profile.at("tables").items()) {
    run_case(name + "table over " + threshold, report, [&, &threshold = threshold, &table = table] {
      needs_float32();
      expect_steps(table_steps(ratios, std::stod(threshold)), table);
    });
  }
}
