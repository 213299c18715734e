#include <algorithm>

#include "model/families/families.h"
#include "model/families/qwen_layout.h"

namespace bicached {
namespace {

using nlohmann::json;

/// SDAR (`SDARForCausalLM`, arXiv 2510.06303): Qwen3's layout, which attends block by block.
/// `sdar_moe` has Qwen3-MoE's experts.
bool recognizes(const json& config) {
  const json type = config.value("model_type", json());
  return type == "sdar" || type == "sdar_moe";
}

/// Layers without experts: those listed, and all but every `decoder_sparse_step`th.
std::vector<bool> sparse_layers(const json& config, int num_layers) {
  const ConfigReader read(config);
  const int step = read.integer_or("decoder_sparse_step", 1, 1, 1 << 20);
  const std::vector<int> dense = read.integers("mlp_only_layers", 0, num_layers - 1);
  std::vector<bool> sparse;
  for (int i = 0; i < num_layers; ++i) {
    sparse.push_back((i + 1) % step == 0 && std::ranges::find(dense, i) == dense.end());
  }
  return sparse;
}

ModelConfig parse(const json& config) {
  const ConfigReader read(config);
  read.require("attention_bias", {false});
  ModelConfig model = parse_qwen_config(config);
  model.qk_norm = true;
  constexpr int kBlock = 4;  // of the checkpoints whose config.json does not say
  model.attention_block = read.integer_or("block_size", kBlock, 1, model.max_length);
  if (config.value("model_type", json()) == "sdar") return model;
  ExpertsConfig& experts = model.experts;
  experts.num_experts = read.integer("num_experts", 1, 1 << 16);
  experts.num_chosen = read.integer("num_experts_per_tok", 1, experts.num_experts);
  experts.size = read.integer("moe_intermediate_size", 1, 1 << 24);
  experts.normalized = read.flag("norm_topk_prob", true);
  model.sparse_layers = sparse_layers(config, model.num_layers);
  return model;
}

}  // namespace

ModelFamily sdar_family() {
  ModelFamily family{"sdar", "sdar (SDAR and SDAR-MoE)", recognizes, parse, &qwen_tensor_names()};
  family.decoder = {.algorithm = "low_confidence_dynamic",
                    .filters_confidence = true,
                    .params = {{"threshold", 0.85}}};
  family.chat_template = kChatMl;
  family.mask_token_text = "<|MASK|>";
  return family;
}

}  // namespace bicached
