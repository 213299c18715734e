#include <string>

#include "bicached/error.h"
#include "model/families/families.h"

namespace bicached {
namespace {

using nlohmann::json;

/// LLaDA-8B, LLaDA-1.5 and models with their layout: config keys and tensor names of the OLMo code
/// that LLaDA was trained with (`LLaDAModelLM`). MHA and GQA; tied or untied head; the embedding
/// may have more rows than the vocabulary.
/// LLaDA-MoE has the same model_type.
bool recognizes(const json& config) {
  return config.value("model_type", json()) == "llada" && !config.contains("num_experts");
}

ModelConfig parse(const json& config) {
  const ConfigReader read(config);
  read.require("block_type", {"llama"});
  read.require("layer_norm_type", {"rms"});
  read.require("activation_type", {"silu", "swiglu"});
  read.require("rope", {true});
  for (const char* off : {"alibi", "attention_layer_norm", "bias_for_layer_norm", "include_bias",
                          "include_qkv_bias", "input_emb_norm", "scale_logits"}) {
    read.require(off, {false});
  }
  read.require("multi_query_attention", {false});
  read.require("block_group_size", {1});

  ModelConfig model;
  model.num_layers = read.integer("n_layers", 1, 1024);
  model.hidden_size = read.integer("d_model", 2, 1 << 20);
  model.num_heads = read.integer("n_heads", 1, 4096);
  model.num_kv_heads = read.integer_or("n_kv_heads", model.num_heads, 1, 4096);
  if (model.hidden_size % model.num_heads != 0 || model.num_heads % model.num_kv_heads != 0 ||
      model.hidden_size / model.num_heads % 2 != 0) {
    throw Error(ErrorCode::kInvalidModel,
                "d_model " + std::to_string(model.hidden_size) + ", n_heads " +
                    std::to_string(model.num_heads) + ", n_kv_heads " +
                    std::to_string(model.num_kv_heads) +
                    ": heads must divide the width into even sizes, KV heads divide the heads");
  }
  model.head_size = model.hidden_size / model.num_heads;
  model.mlp_size = read.integer_or("mlp_hidden_size", 0, 1, 1 << 24);
  if (model.mlp_size == 0) {
    model.mlp_size = read.integer_or("mlp_ratio", 4, 1, 64) * model.hidden_size;
  }
  model.vocab_size = read.integer("vocab_size", 1, 1 << 24);
  model.num_logits = read.integer_or("embedding_size", model.vocab_size, model.vocab_size, 1 << 24);
  model.max_length = read.integer("max_sequence_length", 1, 1 << 24);
  model.norm_eps = read.number("rms_norm_eps", 0, 1);
  model.rope_theta = read.number("rope_theta", 1, 1e12);
  model.tied_head = read.flag("weight_tying", false);
  model.mask_token = read.integer("mask_token_id", 0, model.num_logits - 1);
  return model;
}

const TensorNames kTensorNames{
    {TensorRole::kEmbedding, "model.transformer.wte.weight"},
    {TensorRole::kFinalNorm, "model.transformer.ln_f.weight"},
    {TensorRole::kHead, "model.transformer.ff_out.weight"},
    {TensorRole::kAttentionNorm, "model.transformer.blocks.{layer}.attn_norm.weight"},
    {TensorRole::kQuery, "model.transformer.blocks.{layer}.q_proj.weight"},
    {TensorRole::kKey, "model.transformer.blocks.{layer}.k_proj.weight"},
    {TensorRole::kValue, "model.transformer.blocks.{layer}.v_proj.weight"},
    {TensorRole::kAttentionOut, "model.transformer.blocks.{layer}.attn_out.weight"},
    {TensorRole::kMlpNorm, "model.transformer.blocks.{layer}.ff_norm.weight"},
    {TensorRole::kGate, "model.transformer.blocks.{layer}.ff_proj.weight"},
    {TensorRole::kUp, "model.transformer.blocks.{layer}.up_proj.weight"},
    {TensorRole::kDown, "model.transformer.blocks.{layer}.ff_out.weight"},
};

}  // namespace

ModelFamily llada_family() {
  return {"llada", "llada (LLaDA-8B, LLaDA-1.5)", recognizes, parse, &kTensorNames};
}

}  // namespace bicached
