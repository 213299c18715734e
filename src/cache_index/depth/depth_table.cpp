#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "bicached/error.h"
#include "cache_index/depth/depth_table.h"

namespace bicached {
namespace {

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw Error(ErrorCode::kInvalidSettings, path + ": " + why, "depth_table");
}

int read_integer(const nlohmann::json& object, const char* key, int min, int max,
                 const std::string& path, const std::string& where) {
  const std::string range = std::to_string(min) + " to " + std::to_string(max);
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_integer()) {
    refuse(path, where + key + " must be a whole number, " + range);
  }
  const int64_t value = it->get<int64_t>();
  if (value < min || value > max) {
    refuse(path, where + key + " is " + std::to_string(value) + "; allowed is " + range);
  }
  return static_cast<int>(value);
}

}  // namespace

int ratio_percent(int prefix_len, int total_len) {
  // As the published engine computes it, in double; the default rounding mode is half to even.
  return static_cast<int>(
      std::nearbyint(static_cast<double>(prefix_len) / static_cast<double>(total_len) * 100));
}

int DepthTable::depth_at(int ratio) const {
  int depth = 0;
  for (const Step& step : steps) {
    if (step.min_ratio_percent > ratio) break;
    depth = step.depth;
  }
  return depth;
}

DepthTable DepthTable::load(const std::string& path, int num_layers) {
  const nlohmann::json json = read_json_file(path, ErrorCode::kInvalidSettings);
  if (!json.is_object()) refuse(path, "must be an object with num_layers and steps");
  DepthTable table;
  table.num_layers = read_integer(json, "num_layers", 1, 4096, path, "");
  if (table.num_layers != num_layers) {
    refuse(path, "made for a model of " + std::to_string(table.num_layers) +
                     " layers; this one has " + std::to_string(num_layers));
  }
  if (const auto model = json.find("model"); model != json.end() && model->is_string()) {
    table.model = model->get<std::string>();
  }
  const auto steps = json.find("steps");
  if (steps == json.end() || !steps->is_array() || steps->empty()) {
    refuse(path, "steps must be a list of {\"min_ratio_percent\", \"depth\"}, at least one");
  }
  for (size_t i = 0; i < steps->size(); ++i) {
    const nlohmann::json& step = (*steps)[i];
    const std::string where = "steps[" + std::to_string(i) + "].";
    if (!step.is_object()) refuse(path, "steps[" + std::to_string(i) + "] must be an object");
    const int above = table.steps.empty() ? 0 : table.steps.back().min_ratio_percent + 1;
    table.steps.push_back({read_integer(step, "min_ratio_percent", above, 100, path, where),
                           read_integer(step, "depth", 0, table.num_layers, path, where)});
  }
  return table;
}

}  // namespace bicached
