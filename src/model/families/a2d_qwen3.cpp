#include "model/families/families.h"
#include "model/families/qwen_layout.h"

namespace bicached {
namespace {

using nlohmann::json;

/// A2D-Qwen3 of the dllm project (Qwen3-0.6B-diffusion-mdlm): Qwen3's layout and weights with full
/// attention, RMSNorm of each query and key head before the rotation, no shift of the logits.
/// Decoded as LLaDA is. Checkpoints that attend block by block (bd3lm) have the same model_type;
/// their answers would not be their own here.
bool recognizes(const json& config) { return config.value("model_type", json()) == "a2d-qwen3"; }

ModelConfig parse(const json& config) {
  ConfigReader(config).require("attention_bias", {false});
  ModelConfig model = parse_qwen_config(config);
  model.qk_norm = true;
  return model;
}

}  // namespace

ModelFamily a2d_qwen3_family() {
  ModelFamily family{"a2d-qwen3", "a2d-qwen3 (Qwen3-0.6B-diffusion-mdlm)", recognizes, parse,
                     &qwen_tensor_names()};
  family.chat_template = kChatMl;
  family.mask_token_text = "<|mask|>";
  return family;
}

}  // namespace bicached
