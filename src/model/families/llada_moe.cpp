#include "bicached/error.h"
#include "model/families/families.h"
#include "model/families/qwen_layout.h"

namespace bicached {
namespace {

using nlohmann::json;

/// LLaDA-MoE-7B-A1B (`LLaDAMoEModelLM`): full attention, norms of query and key heads, a mixture of
/// experts. Its model_type is LLaDA's; the experts tell them apart.
bool recognizes(const json& config) {
  const json type = config.value("model_type", json());
  return (type == "llada" && config.contains("num_experts")) || type == "lladamoe";
}

ModelConfig parse(const json& config) {
  const ConfigReader read(config);
  read.require("attention_bias", {false});
  ModelConfig model = parse_qwen_config(config, "dense_intermediate_size");
  model.clip_qkv = read.number_or("clip_qkv", 0, 0, 1e6);
  model.qk_norm = read.flag("qk_layernorm", true);
  model.rotary_size = rotary_size(config, model.head_size);
  ExpertsConfig& experts = model.experts;
  experts.num_experts = read.integer("num_experts", 1, 1 << 16);
  experts.num_chosen = read.integer("num_experts_per_tok", 1, experts.num_experts);
  experts.size = read.integer("expert_intermediate_size", 1, 1 << 20);
  // It runs as experts, and each of these has a result a row.
  constexpr int kMaxShared = 64;
  experts.shared_size =
      read.integer_or("shared_expert_intermediate_size", 0, 0, experts.size * kMaxShared);
  if (read.flag("moe_router_enable_expert_bias", false)) {
    experts.router_bias = RouterBias::kChoiceAndWeight;
  }
  // Weights are never made to sum to 1, whatever norm_topk_prob says: so does the model's code.
  const std::vector<int> sparse = read.integers("moe_layer_freq", 0, 1);
  if (static_cast<int>(sparse.size()) != model.num_layers) {
    throw Error(ErrorCode::kInvalidModel, "moe_layer_freq has " + std::to_string(sparse.size()) +
                                              " entries; num_hidden_layers is " +
                                              std::to_string(model.num_layers));
  }
  model.sparse_layers.assign(sparse.begin(), sparse.end());
  return model;
}

const TensorNames& tensor_names() {
  static const TensorNames names = [] {
    TensorNames all = qwen_tensor_names();
    all.insert(all.end(),
               {{TensorRole::kRouterBias, "model.layers.{layer}.mlp.expert_bias"},
                {TensorRole::kSharedGate, "model.layers.{layer}.shared_expert.gate_proj.weight"},
                {TensorRole::kSharedUp, "model.layers.{layer}.shared_expert.up_proj.weight"},
                {TensorRole::kSharedDown, "model.layers.{layer}.shared_expert.down_proj.weight"}});
    return all;
  }();
  return names;
}

/// A turn is `<role>NAME</role>`, its text and `<|role_end|>`.
constexpr const char* kChatTemplate = R"({%- for message in messages -%}
{%- if message['role'] == 'user' -%}<role>HUMAN</role>
{%- elif message['role'] == 'system' -%}<role>SYSTEM</role>
{%- elif message['role'] == 'tool' -%}<role>OBSERVATION</role>
{%- else -%}<role>ASSISTANT</role>
{%- endif -%}
{{- message['content'] -}}<|role_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<role>ASSISTANT</role>{%- endif -%})";

}  // namespace

ModelFamily llada_moe_family() {
  ModelFamily family{"llada-moe", "llada-moe (LLaDA-MoE-7B-A1B)", recognizes, parse,
                     &tensor_names()};
  family.chat_template = kChatTemplate;
  family.mask_token_text = "<|mask|>";
  family.mask_token = 156895;
  return family;
}

}  // namespace bicached
