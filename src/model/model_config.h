#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "bicached/denoiser.h"

namespace bicached {

/// What a bias of the router's scores is added for.
enum class RouterBias { kNone, kChoice, kChoiceAndWeight };

/// A mixture of experts: a router picks some of many small MLPs for each token. An expert's score
/// is softmax or sigmoid of its logit; its weight is the score.
struct ExpertsConfig {
  int num_experts = 0;  // 0: the model has none
  int num_chosen = 0;   // a token
  int size = 0;         // width of an expert
  int shared_size = 0;  // width of the MLP that every token takes as well; 0: none
  bool sigmoid = false;
  RouterBias router_bias = RouterBias::kNone;
  bool normalized = false;    // weights of a token's experts sum to 1
  double weight_scale = 1.0;  // what the weights of chosen experts are multiplied by
  /// Experts are chosen in the best `num_chosen_groups` groups. A group, as many neighbours as the
  /// others, is as good as its two best experts together.
  int num_groups = 1;
  int num_chosen_groups = 1;

  /// The shared MLP as experts; the last is filled up with zeros.
  int num_shared() const { return shared_size == 0 ? 0 : (shared_size - 1) / size + 1; }
  /// Experts that work on a token.
  int num_taken() const { return num_chosen + num_shared(); }
};

/// The transformer that all supported families are: RMSNorm, rotary positions (rotation of halves),
/// grouped-query attention, SwiGLU or a mixture of such. Numbers from config.json, checked.
struct ModelConfig {
  int num_layers = 0;
  int hidden_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_size = 0;
  int rotary_size = 0;  // leading numbers of a head that are rotated; 0 from `parse`: all
  int mlp_size = 0;     // of layers without experts
  ExpertsConfig experts;
  std::vector<bool> sparse_layers;  // by layer: whether it has experts; empty: none has
  int vocab_size = 0;
  int num_logits = 0;  // rows of embedding and head, >= vocab_size
  int max_length = 0;
  double norm_eps = 1e-5;
  double rope_theta = 10000.0;
  bool tied_head = false;  // the head is the embedding
  bool qkv_bias = false;
  bool qk_norm = false;  // of query and key heads, before the rotation
  double clip_qkv = 0;   // then queries, keys and values lie in [-clip, clip]; 0: as they are
  /// A row attends over all keys up to the end of its block of so many positions, counted from the
  /// beginning of the canvas; 0: over all of the canvas.
  int attention_block = 0;
  TokenId mask_token = 0;           // -1 from `parse`: the tokenizer's, see ModelFamily
  std::vector<TokenId> end_tokens;  // of config.json; the other files' are added when loading
  TokenId start_token = -1;         // filled in when loading; -1: none is named

  bool is_sparse(int layer) const {
    return !sparse_layers.empty() && sparse_layers[static_cast<size_t>(layer)];
  }
};

/// The tensors of a model, by role.
enum class TensorRole {
  kEmbedding,
  kFinalNorm,
  kHead,  // once
  kAttentionNorm,
  kQkv,  // query, key and value as one matrix, or
  kQuery,
  kKey,
  kValue,
  kQueryBias,
  kKeyBias,
  kValueBias,
  kQueryNorm,
  kKeyNorm,
  kAttentionOut,
  kMlpNorm,
  kGate,
  kUp,
  kDown,  // a layer without experts
  kRouter,
  kRouterBias,
  kSharedGate,
  kSharedUp,
  kSharedDown,  // a layer with experts
  kExpertGate,
  kExpertUp,
  kExpertDown,  // an expert
};

/// How a family calls its tensors: "{layer}" and "{expert}" stand for their numbers.
using TensorNames = std::vector<std::pair<TensorRole, const char*>>;

/// A model family: how its config.json reads and how its tensors are called. One file each in
/// src/model/families/, one line in `family_table()`.
struct ModelFamily {
  const char* name;
  const char* about;
  bool (*recognizes)(const nlohmann::json& config);
  /// Throws kInvalidModel naming the key, its value and what is supported.
  ModelConfig (*parse)(const nlohmann::json& config);
  const TensorNames* tensor_names;
  int logits_shift = 0;  // logits of row j - shift serve position j
  ReferenceDecoder decoder = {};
  const char* chat_template = "";    // Jinja, for folders without one
  const char* mask_token_text = "";  // in tokenizer_config.json, where config.json has no id
  TokenId mask_token = -1;           // where neither names one; -1: then the folder is refused
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
  /// Of a list; empty where it is absent.
  std::vector<int> integers(const char* key, int min, int max) const;
  double number(const char* key, double min, double max) const;
  double number_or(const char* key, double otherwise, double min, double max) const;
  bool flag(const char* key, bool otherwise) const;
  /// Throws unless the key is absent, null or one of the values.
  void require(const char* key, const std::vector<nlohmann::json>& supported) const;

 private:
  const nlohmann::json& config_;
};

}  // namespace bicached
