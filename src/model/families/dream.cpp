#include <string>

#include "bicached/error.h"
#include "model/families/families.h"

namespace bicached {
namespace {

using nlohmann::json;

/// Dream-v0, Dream-Coder and DiffuCoder (`DreamModel`, arXiv 2508.15487): the layout of Qwen2.5,
/// whose weights they began with. Hence biases of query, key and value, and the shift: the logits
/// of row j - 1 are those of position j.
bool recognizes(const json& config) { return config.value("model_type", json()) == "Dream"; }

ModelConfig parse(const json& config) {
  const ConfigReader read(config);
  read.require("hidden_act", {"silu"});
  read.require("use_sliding_window", {false});
  read.require("rope_scaling", {nullptr});

  ModelConfig model;
  model.num_layers = read.integer("num_hidden_layers", 1, 1024);
  model.hidden_size = read.integer("hidden_size", 2, 1 << 20);
  model.num_heads = read.integer("num_attention_heads", 1, 4096);
  model.num_kv_heads = read.integer_or("num_key_value_heads", model.num_heads, 1, 4096);
  if (model.hidden_size % model.num_heads != 0 || model.num_heads % model.num_kv_heads != 0 ||
      model.hidden_size / model.num_heads % 2 != 0) {
    throw Error(ErrorCode::kInvalidModel,
                "hidden_size " + std::to_string(model.hidden_size) + ", num_attention_heads " +
                    std::to_string(model.num_heads) + ", num_key_value_heads " +
                    std::to_string(model.num_kv_heads) +
                    ": heads must divide the width into even sizes, KV heads divide the heads");
  }
  model.head_size = model.hidden_size / model.num_heads;
  model.mlp_size = read.integer("intermediate_size", 1, 1 << 24);
  model.vocab_size = model.num_logits = read.integer("vocab_size", 1, 1 << 24);
  model.max_length = read.integer("max_position_embeddings", 1, 1 << 24);
  model.norm_eps = read.number("rms_norm_eps", 0, 1);
  model.rope_theta = read.number("rope_theta", 1, 1e12);
  model.tied_head = read.flag("tie_word_embeddings", false);
  model.qkv_bias = true;
  model.mask_token = read.integer("mask_token_id", 0, model.num_logits - 1);
  return model;
}

std::string tensor_name(TensorRole role, int layer) {
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
  }
  return {};
}

/// ChatML with the system message that Qwen2.5 has by default, without the name.
constexpr const char* kChatTemplate = R"({%- if messages[0]['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%})";

constexpr int kWholeGeneration = 1 << 20;  // the reference has no blocks

}  // namespace

ModelFamily dream_family() {
  ModelFamily family{"dream", "Dream (Dream-v0, Dream-Coder, DiffuCoder)", recognizes, parse,
                     tensor_name};
  family.logits_shift = 1;
  // `entropy` is what all three models' examples use; the code's own default is `origin`, and so is
  // that of folders whose generation_config.json says it.
  family.decoder = {"entropy", kWholeGeneration, Schedule::kTimesteps, true};
  family.chat_template = kChatTemplate;
  return family;
}

}  // namespace bicached
