#pragma once

#include <string>

#include "model/model_config.h"

namespace bicached {

/// What families that began as a Qwen model have in common: keys of config.json, but for the mask
/// token and biases, and tensor names. Throws kInvalidModel naming key, value and what is
/// supported.
ModelConfig parse_qwen_config(const nlohmann::json& config);
std::string qwen_tensor_name(TensorRole role, int layer);

/// ChatML without a default system message.
inline constexpr const char* kChatMl = R"({%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%})";

}  // namespace bicached
