#include "model/families/qwen_layout.h"

#include "bicached/error.h"

namespace bicached {

ModelConfig parse_qwen_config(const nlohmann::json& config, const char* mlp_size_key) {
  const ConfigReader read(config);
  read.require("hidden_act", {"silu"});
  read.require("use_sliding_window", {false});
  read.require("rope_scaling", {nullptr});

  ModelConfig model;
  model.num_layers = read.integer("num_hidden_layers", 1, 1024);
  model.hidden_size = read.integer("hidden_size", 2, 1 << 20);
  model.num_heads = read.integer("num_attention_heads", 1, 4096);
  model.num_kv_heads = read.integer_or("num_key_value_heads", 0, 0, 4096);
  if (model.num_kv_heads == 0) model.num_kv_heads = model.num_heads;
  model.head_size = read.integer_or("head_dim", model.hidden_size / model.num_heads, 1, 1 << 16);
  const bool divides = config.contains("head_dim") || model.hidden_size % model.num_heads == 0;
  if (!divides || model.num_heads % model.num_kv_heads != 0 || model.head_size % 2 != 0) {
    throw Error(ErrorCode::kInvalidModel,
                "hidden_size " + std::to_string(model.hidden_size) + ", num_attention_heads " +
                    std::to_string(model.num_heads) + ", num_key_value_heads " +
                    std::to_string(model.num_kv_heads) + ", head size " +
                    std::to_string(model.head_size) +
                    ": heads must be of an even size, which divides the width unless head_dim says "
                    "otherwise, and KV heads divide the heads");
  }
  model.mlp_size = read.integer(mlp_size_key, 1, 1 << 24);
  model.vocab_size = model.num_logits = read.integer("vocab_size", 1, 1 << 24);
  model.max_length = read.integer("max_position_embeddings", 1, 1 << 24);
  model.norm_eps = read.number("rms_norm_eps", 0, 1);
  model.rope_theta = read.number("rope_theta", 1, 1e12);
  model.tied_head = read.flag("tie_word_embeddings", false);
  model.mask_token = read.integer_or("mask_token_id", -1, 0, model.num_logits - 1);
  return model;
}

int rotary_size(const nlohmann::json& config, int head_size) {
  const double share = ConfigReader(config).number_or("partial_rotary_factor", 1, -1, 1);
  if (share <= 0) return head_size;
  const int size = static_cast<int>(head_size * share);
  if (size < 2 || size % 2 != 0) {
    throw Error(ErrorCode::kInvalidModel, "partial_rotary_factor rotates " + std::to_string(size) +
                                              " of " + std::to_string(head_size) +
                                              " numbers of a head; it must be an even number "
                                              "above 0");
  }
  return size;
}

const TensorNames& qwen_tensor_names() {
  static const TensorNames names{
      {TensorRole::kEmbedding, "model.embed_tokens.weight"},
      {TensorRole::kFinalNorm, "model.norm.weight"},
      {TensorRole::kHead, "lm_head.weight"},
      {TensorRole::kAttentionNorm, "model.layers.{layer}.input_layernorm.weight"},
      {TensorRole::kQuery, "model.layers.{layer}.self_attn.q_proj.weight"},
      {TensorRole::kKey, "model.layers.{layer}.self_attn.k_proj.weight"},
      {TensorRole::kValue, "model.layers.{layer}.self_attn.v_proj.weight"},
      {TensorRole::kQueryBias, "model.layers.{layer}.self_attn.q_proj.bias"},
      {TensorRole::kKeyBias, "model.layers.{layer}.self_attn.k_proj.bias"},
      {TensorRole::kValueBias, "model.layers.{layer}.self_attn.v_proj.bias"},
      {TensorRole::kQueryNorm, "model.layers.{layer}.self_attn.q_norm.weight"},
      {TensorRole::kKeyNorm, "model.layers.{layer}.self_attn.k_norm.weight"},
      {TensorRole::kAttentionOut, "model.layers.{layer}.self_attn.o_proj.weight"},
      {TensorRole::kMlpNorm, "model.layers.{layer}.post_attention_layernorm.weight"},
      {TensorRole::kGate, "model.layers.{layer}.mlp.gate_proj.weight"},
      {TensorRole::kUp, "model.layers.{layer}.mlp.up_proj.weight"},
      {TensorRole::kDown, "model.layers.{layer}.mlp.down_proj.weight"},
      {TensorRole::kRouter, "model.layers.{layer}.mlp.gate.weight"},
      {TensorRole::kExpertGate, "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"},
      {TensorRole::kExpertUp, "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"},
      {TensorRole::kExpertDown, "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"},
  };
  return names;
}

}  // namespace bicached
