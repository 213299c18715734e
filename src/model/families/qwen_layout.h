#pragma once

#include <string>

#include "model/model_config.h"

namespace bicached {

/// What families that began as a Qwen model have in common: keys of config.json, but for biases and
/// experts, and tensor names. The mask token may be left out. Throws kInvalidModel naming key,
/// value and what is supported.
ModelConfig parse_qwen_config(const nlohmann::json& config,
                              const char* mlp_size_key = "intermediate_size");
const TensorNames& qwen_tensor_names();

/// `partial_rotary_factor` of a head, an even number; all of it where that is absent or not above
/// 0.
int rotary_size(const nlohmann::json& config, int head_size);

/// ChatML without a default system message.
inline constexpr const char* kChatMl = R"({%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%})";

}  // namespace bicached
