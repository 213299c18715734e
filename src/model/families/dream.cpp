#include <string>

#include "model/families/families.h"
#include "model/families/qwen_layout.h"

namespace bicached {
namespace {

using nlohmann::json;

/// Dream-v0, Dream-Coder and DiffuCoder (`DreamModel`, arXiv 2508.15487): the layout of Qwen2.5,
/// whose weights they began with. Hence biases of query, key and value, and the shift: the logits
/// of row j - 1 are those of position j.
bool recognizes(const json& config) { return config.value("model_type", json()) == "Dream"; }

ModelConfig parse(const json& config) {
  ModelConfig model = parse_qwen_config(config);
  model.qkv_bias = true;
  model.mask_token = ConfigReader(config).integer("mask_token_id", 0, model.num_logits - 1);
  return model;
}

/// ChatML with the system message that Qwen2.5 has by default, without the name.
const std::string& chat_template() {
  static const std::string text = std::string(R"({%- if messages[0]['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
)") + kChatMl;
  return text;
}

constexpr int kWholeGeneration = 1 << 20;  // the reference has no blocks

}  // namespace

ModelFamily dream_family() {
  ModelFamily family{"dream", "Dream (Dream-v0, Dream-Coder, DiffuCoder)", recognizes, parse,
                     &qwen_tensor_names()};
  family.logits_shift = 1;
  // `entropy` is what all three models' examples use; the code's own default is `origin`, and so is
  // that of folders whose generation_config.json says it.
  family.decoder = {.algorithm = "entropy",
                    .block_length = kWholeGeneration,
                    .schedule = Schedule::kTimesteps,
                    .filters_confidence = true,
                    .params = {}};
  family.chat_template = chat_template().c_str();
  return family;
}

}  // namespace bicached
