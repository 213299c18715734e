#include "model/model_config.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <utility>

#include "base/json_file.h"
#include "bicached/error.h"
#include "model/families/families.h"

namespace bicached {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr size_t kMaxJsonBytes = 64 << 20;
/// Of numbers in a configuration: a model has few layers, and few tokens end its text.
constexpr size_t kMaxList = 1024;
/// In all layers: each has three tensors with a name. Released models have some 23,000.
constexpr int64_t kMaxExperts = 1 << 17;

[[noreturn]] void refuse(const std::string& why) { throw Error(ErrorCode::kInvalidModel, why); }

/// Empty object where the file is missing and that is allowed.
json read_json(const fs::path& path, bool must_exist) {
  std::error_code error;
  if (!must_exist && !fs::exists(path, error)) return json::object();
  json parsed = read_json_file(path.string(), ErrorCode::kInvalidModel,
                               {kMaxJsonBytes, 64, /*unique_keys=*/false});
  if (!parsed.is_object()) refuse(path.string() + ": must be a JSON object");
  return parsed;
}

void add_end_token(ModelConfig& config, int64_t id) {
  if (id < 0 || id >= config.vocab_size) return;
  const auto token = static_cast<TokenId>(id);
  auto& ends = config.end_tokens;
  if (std::ranges::find(ends, token) == ends.end()) ends.push_back(token);
}

/// eos_token_id of a JSON file: a number or a list.
void add_end_tokens(ModelConfig& config, const json& file) {
  const auto it = file.find("eos_token_id");
  if (it == file.end()) return;
  if (it->size() > kMaxList) {
    refuse("eos_token_id has " + std::to_string(it->size()) + " tokens; allowed are at most " +
           std::to_string(kMaxList));
  }
  for (const json& id : it->is_array() ? *it : json::array({*it})) {
    if (id.is_number_integer()) add_end_token(config, id.get<int64_t>());
  }
}

/// Tokens by their text, of the tokenizer's files: the added ones, then the vocabulary.
class TokenNames {
 public:
  explicit TokenNames(const fs::path& folder) : folder_(folder) {
    const json config = read_json(folder / "tokenizer_config.json", false);
    const auto added = config.find("added_tokens_decoder");
    if (added != config.end() && added->is_object()) {
      for (const auto& [id, about] : added->items()) {
        const bool is_number = !id.empty() && id.size() < 10 &&
                               std::ranges::all_of(id, [](char c) { return c >= '0' && c <= '9'; });
        if (is_number) add(about, std::stoll(id));
      }
    }
    read_eos(config);
    read_eos(read_json(folder / "special_tokens_map.json", false));
    add_all(read_json(folder / "added_tokens.json", false));
    if (ids_.empty()) read_vocabulary();
  }

  /// Texts that the files call the end of a text or turn.
  const std::vector<std::string>& ends() const { return ends_; }
  const std::string& start() const { return start_; }
  const std::map<std::string, int64_t>& added() const { return ids_; }
  /// -1: there is none.
  int64_t find(const std::string& text) {
    if (!ids_.contains(text)) read_vocabulary();
    const auto found = ids_.find(text);
    return found == ids_.end() ? -1 : found->second;
  }

 private:
  void add(const json& about, int64_t id) {
    if (about.is_object() && about.contains("content") && about["content"].is_string()) {
      ids_.emplace(about["content"].get<std::string>(), id);
    }
  }
  /// An object of ids by text.
  void add_all(const json& vocabulary) {
    for (const auto& [text, id] : vocabulary.items()) {
      if (id.is_number_integer()) ids_.emplace(text, id.get<int64_t>());
    }
  }
  void read_eos(const json& file) {
    const auto text_of = [&](const char* key) -> std::string {
      const auto found = file.find(key);
      if (found == file.end()) return "";
      const json& named =
          found->is_object() && found->contains("content") ? (*found)["content"] : *found;
      return named.is_string() ? named.get<std::string>() : "";
    };
    for (const char* key : {"eos_token", "eot_token"}) {
      if (const std::string text = text_of(key); !text.empty()) ends_.push_back(text);
    }
    if (start_.empty()) start_ = text_of("bos_token");
  }
  /// Large files: only where a name is found nowhere else.
  void read_vocabulary() {
    if (std::exchange(has_vocabulary_, true)) return;
    const json tokenizer = read_json(folder_ / "tokenizer.json", false);
    for (const json& token : tokenizer.value("added_tokens", json::array())) {
      if (token.is_object() && token.contains("id") && token["id"].is_number_integer()) {
        add(token, token["id"].get<int64_t>());
      }
    }
    const json model = tokenizer.value("model", json::object());
    const json vocabulary = model.is_object() && model.contains("vocab")
                                ? model["vocab"]
                                : read_json(folder_ / "vocab.json", false);
    if (vocabulary.is_object()) add_all(vocabulary);
  }

  const fs::path folder_;
  std::map<std::string, int64_t> ids_;
  std::vector<std::string> ends_;
  std::string start_;
  bool has_vocabulary_ = false;
};

/// Chat models end a turn with a token that config.json does not call EOS, and a tokenizer may name
/// another one than config.json: any of them ends the text.
void add_named_ends(ModelConfig& config, TokenNames& names) {
  for (const std::string& text : names.ends()) add_end_token(config, names.find(text));
  for (const char* text : {"<|eot_id|>", "<|im_end|>", "<|role_end|>"}) {
    const auto found = names.added().find(text);
    if (found != names.added().end()) add_end_token(config, found->second);
  }
}

/// What texts begin with.
void find_start_token(ModelConfig& config, const json& generation, const json& model,
                      TokenNames& names) {
  for (const json* file : {&generation, &model}) {
    const auto found = file->find("bos_token_id");
    if (found == file->end() || !found->is_number_integer()) continue;
    if (*found >= 0 && *found < config.vocab_size) config.start_token = found->get<TokenId>();
    return;
  }
  if (names.start().empty()) return;
  const int64_t id = names.find(names.start());
  if (id >= 0 && id < config.vocab_size) config.start_token = static_cast<TokenId>(id);
}

/// The mask token by its text, where config.json leaves it out.
void find_mask_token(ModelConfig& config, const ModelFamily& family, const fs::path& folder,
                     const TokenNames& names) {
  if (config.mask_token >= 0) return;
  const auto found = names.added().find(family.mask_token_text);
  if (found != names.added().end() && found->second < config.num_logits) {
    config.mask_token = static_cast<TokenId>(found->second);
    return;
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

void check_experts(const ModelConfig& config) {
  const ExpertsConfig& experts = config.experts;
  if (int64_t{config.num_layers} * experts.num_experts > kMaxExperts) {
    refuse(std::to_string(config.num_layers) + " layers of " + std::to_string(experts.num_experts) +
           " experts are more than " + std::to_string(kMaxExperts) + " in all");
  }
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
    check_experts(parsed.config);
  } catch (const Error& e) {
    refuse(path.string() + ": " + e.what());
  }
  if (parsed.config.rotary_size == 0) parsed.config.rotary_size = parsed.config.head_size;
  TokenNames names(folder);
  find_mask_token(parsed.config, *parsed.family, folder, names);
  const json generation = read_json(fs::path(folder) / "generation_config.json", false);
  add_end_tokens(parsed.config, config);
  add_end_tokens(parsed.config, generation);
  add_named_ends(parsed.config, names);
  find_start_token(parsed.config, generation, config, names);
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
  const auto is_wrong = [&](const json& value) {
    return !value.is_number_integer() || value < min || value > max;
  };
  if (!it->is_array() || it->size() > kMaxList || std::ranges::any_of(*it, is_wrong)) {
    refuse(std::string(key) + " is " + it->dump().substr(0, 80) +
           "; it must be a list of integers in [" + std::to_string(min) + ", " +
           std::to_string(max) + "], at most " + std::to_string(kMaxList) + " of them");
  }
  return it->get<std::vector<int>>();
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
