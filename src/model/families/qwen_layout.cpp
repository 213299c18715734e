#include "model/families/qwen_layout.h"

#include "bicached/error.h"

namespace bicached {

ModelConfig parse_qwen_config(const nlohmann::json& config) {
  const ConfigReader read(config);
  read.require("hidden_act", {"silu"});
  read.require("use_sliding_window", {false});
  read.require("rope_scaling", {nullptr});

  ModelConfig model;
  model.num_layers = read.integer("num_hidden_layers", 1, 1024);
  model.hidden_size = read.integer("hidden_size", 2, 1 << 20);
  model.num_heads = read.integer("num_attention_heads", 1, 4096);
  model.num_kv_heads = read.integer_or("num_key_value_heads", model.num_heads, 1, 4096);
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
  model.mlp_size = read.integer("intermediate_size", 1, 1 << 24);
  model.vocab_size = model.num_logits = read.integer("vocab_size", 1, 1 << 24);
  model.max_length = read.integer("max_position_embeddings", 1, 1 << 24);
  model.norm_eps = read.number("rms_norm_eps", 0, 1);
  model.rope_theta = read.number("rope_theta", 1, 1e12);
  model.tied_head = read.flag("tie_word_embeddings", false);
  return model;
}

std::string qwen_tensor_name(TensorRole role, int layer) {
  const std::string block = "model.layers." + std::to_string(layer) + ".";
  switch (role) {
    case TensorRole::kEmbedding: return "model.embed_tokens.weight";
    case TensorRole::kFinalNorm: return "model.norm.weight";
    case TensorRole::kHead: return "lm_head.weight";
    case TensorRole::kAttentionNorm: return block + "input_layernorm.weight";
    case TensorRole::kQuery: return block + "self_attn.q_proj.weight";
    case TensorRole::kKey: return block + "self_attn.k_proj.weight";
    case TensorRole::kValue: return block + "self_attn.v_proj.weight";
    case TensorRole::kAttentionOut: return block + "self_attn.o_proj.weight";
    case TensorRole::kMlpNorm: return block + "post_attention_layernorm.weight";
    case TensorRole::kGate: return block + "mlp.gate_proj.weight";
    case TensorRole::kUp: return block + "mlp.up_proj.weight";
    case TensorRole::kDown: return block + "mlp.down_proj.weight";
    case TensorRole::kQueryBias: return block + "self_attn.q_proj.bias";
    case TensorRole::kKeyBias: return block + "self_attn.k_proj.bias";
    case TensorRole::kValueBias: return block + "self_attn.v_proj.bias";
    case TensorRole::kQueryNorm: return block + "self_attn.q_norm.weight";
    case TensorRole::kKeyNorm: return block + "self_attn.k_norm.weight";
  }
  return {};
}

}  // namespace bicached
