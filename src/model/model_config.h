#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bicached/denoiser.h"

namespace bicached {

/// The transformer that all supported families are: RMSNorm, rotary positions (rotation of halves),
/// grouped-query attention without a mask, SwiGLU. Numbers from config.json, checked.
struct ModelConfig {
  int num_layers = 0;
  int hidden_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_size = 0;
  int mlp_size = 0;
  int vocab_size = 0;
  int num_logits = 0;  // rows of embedding and head, >= vocab_size
  int max_length = 0;
  double norm_eps = 1e-5;
  double rope_theta = 10000.0;
  bool tied_head = false;  // the head is the embedding
  bool qkv_bias = false;
  bool qk_norm = false;             // of query and key heads, before the rotation
  TokenId mask_token = 0;           // -1 from `parse`: the tokenizer's, see ModelFamily
  std::vector<TokenId> end_tokens;  // of config.json; the other files' are added when loading
  TokenId start_token = -1;         // filled in when loading; -1: none is named
};

/// The tensors of a model, by role.
enum class TensorRole {
  kEmbedding,
  kFinalNorm,
  kHead,  // once
  kAttentionNorm,
  kQuery,
  kKey,
  kValue,
  kAttentionOut,  // a layer
  kMlpNorm,
  kGate,
  kUp,
  kDown,
  kQueryBias,
  kKeyBias,
  kValueBias,
  kQueryNorm,
  kKeyNorm,
};

/// A model family: how its config.json reads and how its tensors are called. One file each in
/// src/model/families/, one line in `family_table()`.
struct ModelFamily {
  const char* name;
  const char* about;
  bool (*recognizes)(const nlohmann::json& config);
  /// Throws kInvalidModel naming the key, its value and what is supported.
  ModelConfig (*parse)(const nlohmann::json& config);
  std::string (*tensor_name)(TensorRole role, int layer);
  int logits_shift = 0;  // logits of row j - shift serve position j
  ReferenceDecoder decoder = {};
  const char* chat_template = "";    // Jinja, for folders without one
  const char* mask_token_text = "";  // in tokenizer_config.json, where config.json has no id
};

const std::vector<ModelFamily>& family_table();

/// A model folder's config.json with the family that reads it.
struct ParsedModel {
  const ModelFamily* family = nullptr;
  ModelConfig config;
};
ParsedModel parse_model_folder(const std::string& folder);

/// Reads config.json values with messages that name key, value and range.
class ConfigReader {
 public:
  explicit ConfigReader(const nlohmann::json& config) : config_(config) {}
  int integer(const char* key, int min, int max) const;
  int integer_or(const char* key, int otherwise, int min, int max) const;
  double number(const char* key, double min, double max) const;
  bool flag(const char* key, bool otherwise) const;
  /// Throws unless the key is absent, null or one of the values.
  void require(const char* key, const std::vector<nlohmann::json>& supported) const;

 private:
  const nlohmann::json& config_;
};

}  // namespace bicached
