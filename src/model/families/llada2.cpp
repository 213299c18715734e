#include "model/families/families.h"
#include "model/families/qwen_layout.h"

namespace bicached {
namespace {

using nlohmann::json;

/// LLaDA2.0 and 2.1 (`LLaDA2MoeModelLM`): attends block by block; experts chosen by sigmoids in
/// groups, beside a shared one; half of each head is rotated.
bool recognizes(const json& config) { return config.value("model_type", json()) == "llada2_moe"; }

ModelConfig parse(const json& config) {
  const ConfigReader read(config);
  for (const char* off :
       {"use_bias", "use_qkv_bias", "norm_head", "using_split_qkv_in_self_attention"}) {
    read.require(off, {false});
  }
  read.require("use_rmsnorm", {true});
  read.require("score_function", {"sigmoid"});
  ModelConfig model = parse_qwen_config(config);
  model.qk_norm = read.flag("use_qk_norm", true);
  model.rotary_size = rotary_size(config, model.head_size);
  constexpr int kBlock = 32;  // published files don't say
  model.attention_block = read.integer_or("block_length", kBlock, 1, model.max_length);
  ExpertsConfig& experts = model.experts;
  experts.num_experts = read.integer("num_experts", 1, 1 << 16);
  experts.num_chosen = read.integer("num_experts_per_tok", 1, experts.num_experts);
  experts.size = read.integer("moe_intermediate_size", 1, 1 << 20);
  experts.shared_size = experts.size * read.integer_or("num_shared_experts", 0, 0, 16);
  experts.sigmoid = true;
  if (read.flag("moe_router_enable_expert_bias", false)) {
    experts.router_bias = RouterBias::kChoice;
  }
  experts.normalized = read.flag("norm_topk_prob", true) && experts.num_chosen > 1;
  experts.weight_scale = read.number_or("routed_scaling_factor", 1, 0, 1e6);
  experts.num_groups = read.integer_or("n_group", 1, 1, experts.num_experts);
  experts.num_chosen_groups = read.integer_or("topk_group", 1, 1, experts.num_groups);
  const int num_dense = read.integer_or("first_k_dense_replace", 0, 0, model.num_layers);
  for (int i = 0; i < model.num_layers; ++i) model.sparse_layers.push_back(i >= num_dense);
  return model;
}

const TensorNames kTensorNames{
    {TensorRole::kEmbedding, "model.word_embeddings.weight"},
    {TensorRole::kFinalNorm, "model.norm.weight"},
    {TensorRole::kHead, "lm_head.weight"},
    {TensorRole::kAttentionNorm, "model.layers.{layer}.input_layernorm.weight"},
    {TensorRole::kQkv, "model.layers.{layer}.attention.query_key_value.weight"},
    {TensorRole::kQueryNorm, "model.layers.{layer}.attention.query_layernorm.weight"},
    {TensorRole::kKeyNorm, "model.layers.{layer}.attention.key_layernorm.weight"},
    {TensorRole::kAttentionOut, "model.layers.{layer}.attention.dense.weight"},
    {TensorRole::kMlpNorm, "model.layers.{layer}.post_attention_layernorm.weight"},
    {TensorRole::kGate, "model.layers.{layer}.mlp.gate_proj.weight"},
    {TensorRole::kUp, "model.layers.{layer}.mlp.up_proj.weight"},
    {TensorRole::kDown, "model.layers.{layer}.mlp.down_proj.weight"},
    {TensorRole::kRouter, "model.layers.{layer}.mlp.gate.weight"},
    {TensorRole::kRouterBias, "model.layers.{layer}.mlp.gate.expert_bias"},
    {TensorRole::kSharedGate, "model.layers.{layer}.mlp.shared_experts.gate_proj.weight"},
    {TensorRole::kSharedUp, "model.layers.{layer}.mlp.shared_experts.up_proj.weight"},
    {TensorRole::kSharedDown, "model.layers.{layer}.mlp.shared_experts.down_proj.weight"},
    {TensorRole::kExpertGate, "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight"},
    {TensorRole::kExpertUp, "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"},
    {TensorRole::kExpertDown, "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"},
};

/// The turns of LLaDA-MoE, always after a system turn that ends with "detailed thinking off".
constexpr const char* kChatTemplate = R"(<role>SYSTEM</role>
{%- if messages[0]['role'] == 'system' -%}
{{- messages[0]['content'] + '\n' -}}
{%- endif -%}
detailed thinking off<|role_end|>
{%- for message in messages -%}
{%- if not (loop.first and message['role'] == 'system') -%}
{%- if message['role'] == 'user' -%}<role>HUMAN</role>
{%- elif message['role'] == 'system' -%}<role>SYSTEM</role>
{%- elif message['role'] == 'tool' -%}<role>OBSERVATION</role>
{%- else -%}<role>ASSISTANT</role>
{%- endif -%}
{{- message['content'] -}}<|role_end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<role>ASSISTANT</role>{%- endif -%})";

}  // namespace

ModelFamily llada2_family() {
  ModelFamily family{"llada2", "llada2 (LLaDA2.0, LLaDA2.1)", recognizes, parse, &kTensorNames};
  family.decoder = {.algorithm = "low_confidence_dynamic", .params = {{"threshold", 0.95}}};
  family.chat_template = kChatTemplate;
  family.mask_token_text = "<|mask|>";
  family.mask_token = 156895;
  return family;
}

}  // namespace bicached
