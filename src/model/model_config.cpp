#include "model/model_config.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/json_file.h"
#include "bicached/error.h"
#include "model/families/families.h"

namespace bicached {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr size_t kMaxJsonBytes = 64 << 20;

[[noreturn]] void refuse(const std::string& why) { throw Error(ErrorCode::kInvalidModel, why); }

/// Empty object where the file is missing and that is allowed.
json read_json(const fs::path& path, bool must_exist) {
  std::error_code error;
  if (!must_exist && !fs::exists(path, error)) return json::object();
  const std::string text = read_text_file(path.string(), kMaxJsonBytes, ErrorCode::kInvalidModel);
  json parsed;
  try {
    parsed = json::parse(text, [&](int depth, json::parse_event_t, json&) {
      if (depth > 64) refuse(path.string() + ": JSON nested deeper than 64");
      return true;
    });
  } catch (const json::exception& e) {
    refuse(path.string() + ": no valid JSON: " + e.what());
  }
  if (!parsed.is_object()) refuse(path.string() + ": must be a JSON object");
  return parsed;
}

void add_end_token(ModelConfig& config, int64_t id) {
  if (id < 0 || id >= config.vocab_size) return;
  const auto token = static_cast<TokenId>(id);
  if (std::find(config.end_tokens.begin(), config.end_tokens.end(), token) ==
      config.end_tokens.end()) {
    config.end_tokens.push_back(token);
  }
}

/// eos_token_id of a JSON file: a number or a list.
void add_end_tokens(ModelConfig& config, const json& file) {
  const auto it = file.find("eos_token_id");
  if (it == file.end()) return;
  for (const json& id : it->is_array() ? *it : json::array({*it})) {
    if (id.is_number_integer()) add_end_token(config, id.get<int64_t>());
  }
}

/// The tokens that tokenizer_config.json adds, id and text.
std::vector<std::pair<int64_t, std::string>> added_tokens(const fs::path& folder) {
  std::vector<std::pair<int64_t, std::string>> tokens;
  const json tokenizer = read_json(folder / "tokenizer_config.json", false);
  const auto added = tokenizer.find("added_tokens_decoder");
  if (added == tokenizer.end() || !added->is_object()) return tokens;
  for (const auto& [id, about] : added->items()) {
    if (!about.is_object() || !about.contains("content") || !about["content"].is_string()) continue;
    const bool is_number =
        !id.empty() && id.size() < 10 &&
        std::all_of(id.begin(), id.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (is_number) tokens.emplace_back(std::stoll(id), about["content"].get<std::string>());
  }
  return tokens;
}

/// Chat models end a turn with a token that config.json does not call EOS.
void add_turn_ends(ModelConfig& config, const fs::path& folder) {
  static const std::set<std::string> kTurnEnds{"<|eot_id|>", "<|im_end|>", "<|role_end|>"};
  for (const auto& [id, text] : added_tokens(folder)) {
    if (kTurnEnds.contains(text)) add_end_token(config, id);
  }
}

/// The mask token by its text, where config.json leaves it out.
void find_mask_token(ModelConfig& config, const ModelFamily& family, const fs::path& folder) {
  if (config.mask_token >= 0) return;
  for (const auto& [id, text] : added_tokens(folder)) {
    if (text == family.mask_token_text && id < config.num_logits) {
      config.mask_token = static_cast<TokenId>(id);
      return;
    }
  }
  if (family.mask_token >= 0 && family.mask_token < config.num_logits) {
    config.mask_token = family.mask_token;
    return;
  }
  refuse((folder / "config.json").string() +
         ": mask_token_id is missing, and tokenizer_config.json adds no token '" +
         family.mask_token_text + "' below " + std::to_string(config.num_logits) +
         "; one of them must name the mask token");
}

/// Forms of weights that are read: plain ones, and float8 as compressed-tensors writes it.
void check_quantization(const json& config) {
  const auto it = config.find("quantization_config");
  if (it == config.end() || it->is_null()) return;
  if (!it->is_object()) refuse("quantization_config is no JSON object");
  const ConfigReader read(*it);
  try {
    read.require("quant_method", {"compressed-tensors"});
    read.require("format", {"float-quantized", "naive-quantized"});
  } catch (const Error& error) {
    refuse(std::string("quantization_config: ") + error.what() +
           "; weights are read in F32, BF16, F16, and in float8 as compressed-tensors writes it");
  }
}

void check_experts(const ExpertsConfig& experts) {
  const int per_group = experts.num_experts / experts.num_groups;
  if (experts.num_experts % experts.num_groups == 0 &&
      experts.num_chosen <= experts.num_chosen_groups * per_group) {
    return;
  }
  refuse(std::to_string(experts.num_experts) + " experts in " + std::to_string(experts.num_groups) +
         " groups, of which " + std::to_string(experts.num_chosen_groups) + " give " +
         std::to_string(experts.num_chosen) +
         " a token: groups must be of one size and have enough experts");
}

}  // namespace

const std::vector<ModelFamily>& family_table() {
  static const std::vector<ModelFamily> table{llada_family(),     dream_family(),
                                              a2d_qwen3_family(), llada_moe_family(),
                                              llada2_family(),    sdar_family()};
  return table;
}

ParsedModel parse_model_folder(const std::string& folder) {
  const fs::path path = fs::path(folder) / "config.json";
  const json config = read_json(path, true);
  ParsedModel parsed;
  std::string known;
  for (const ModelFamily& family : family_table()) {
    if (family.recognizes(config)) parsed.family = &family;
    known += std::string(known.empty() ? "" : ", ") + family.about;
  }
  if (!parsed.family) {
    refuse(path.string() + ": model_type " +
           (config.contains("model_type") ? config["model_type"].dump() : "(none)") +
           " is not supported; known: " + known);
  }
  try {
    check_quantization(config);
    parsed.config = parsed.family->parse(config);
    check_experts(parsed.config.experts);
  } catch (const Error& e) {
    refuse(path.string() + ": " + e.what());
  }
  if (parsed.config.rotary_size == 0) parsed.config.rotary_size = parsed.config.head_size;
  find_mask_token(parsed.config, *parsed.family, folder);
  add_end_tokens(parsed.config, config);
  add_end_tokens(parsed.config, read_json(fs::path(folder) / "generation_config.json", false));
  add_turn_ends(parsed.config, folder);
  return parsed;
}

int ConfigReader::integer(const char* key, int min, int max) const {
  const auto it = config_.find(key);
  if (it == config_.end() || !it->is_number_integer() || *it < min || *it > max) {
    refuse(std::string(key) + " is " + (it == config_.end() ? "missing" : it->dump()) +
           "; it must be an integer in [" + std::to_string(min) + ", " + std::to_string(max) + "]");
  }
  return it->get<int>();
}

int ConfigReader::integer_or(const char* key, int otherwise, int min, int max) const {
  const auto it = config_.find(key);
  return it == config_.end() || it->is_null() ? otherwise : integer(key, min, max);
}

std::vector<int> ConfigReader::integers(const char* key, int min, int max) const {
  const auto it = config_.find(key);
  if (it == config_.end() || it->is_null()) return {};
  std::vector<int> numbers;
  for (const json& value : it->is_array() ? *it : json::array({nullptr})) {
    if (!value.is_number_integer() || value < min || value > max) {
      refuse(std::string(key) + " is " + it->dump().substr(0, 80) +
             "; it must be a list of integers in [" + std::to_string(min) + ", " +
             std::to_string(max) + "]");
    }
    numbers.push_back(value.get<int>());
  }
  return numbers;
}

double ConfigReader::number(const char* key, double min, double max) const {
  const auto it = config_.find(key);
  if (it == config_.end() || !it->is_number() || *it < min || *it > max) {
    refuse(std::string(key) + " is " + (it == config_.end() ? "missing" : it->dump()) +
           "; it must be a number in [" + json(min).dump() + ", " + json(max).dump() + "]");
  }
  return it->get<double>();
}

double ConfigReader::number_or(const char* key, double otherwise, double min, double max) const {
  const auto it = config_.find(key);
  return it == config_.end() || it->is_null() ? otherwise : number(key, min, max);
}

bool ConfigReader::flag(const char* key, bool otherwise) const {
  const auto it = config_.find(key);
  if (it == config_.end() || it->is_null()) return otherwise;
  if (!it->is_boolean())
    refuse(std::string(key) + " is " + it->dump() + "; it must be true or false");
  return it->get<bool>();
}

void ConfigReader::require(const char* key, const std::vector<json>& supported) const {
  const auto it = config_.find(key);
  if (it == config_.end() || it->is_null()) return;
  std::string values;
  for (const json& value : supported) {
    if (*it == value) return;
    values += (values.empty() ? "" : " or ") + value.dump();
  }
  refuse(std::string(key) + " is " + it->dump() + "; supported is " + values);
}

}  // namespace bicached
