#pragma once

namespace bicached {

/// Chat template of LLaDA-MoE: a turn is `<role>NAME</role>`, its text and `<|role_end|>`.
inline constexpr const char* kRoleTags = R"({%- for message in messages -%}
{%- if message['role'] == 'user' -%}<role>HUMAN</role>
{%- elif message['role'] == 'system' -%}<role>SYSTEM</role>
{%- elif message['role'] == 'tool' -%}<role>OBSERVATION</role>
{%- else -%}<role>ASSISTANT</role>
{%- endif -%}
{{- message['content'] -}}<|role_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<role>ASSISTANT</role>{%- endif -%})";

/// That of LLaDA2, which always begins with a system turn that ends with "detailed thinking off".
inline constexpr const char* kRoleTagsThinkingOff = R"(<role>SYSTEM</role>
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

}  // namespace bicached
