#pragma once

#include <string>
#include <vector>

#include "config/json_fields.h"
#include "http/decode_fields.h"
#include "http/job.h"
#include "text/chat_prompt.h"

namespace bicached {

/// Reading a body is the same for every dialect but for the names of some fields:
///
///     Job job;
///     CommonFields common = read_shared_fields(fields, context, job);
///     read_length(fields, "max_tokens", common.length);
///     ...the prompt's fields...
///     finish_reading(fields, context);
///     add_canvases(prompt, common, kRules, context, job);

/// A prompt before it is a canvas.
struct Prompt {
  std::vector<TokenId> ids;
  std::vector<int> prefix_boundaries;
  std::vector<TokenId> suffix = {};
  std::vector<TokenId> given = {};  // as GenerateRequest's
};

/// `model`, checked. For none, or an empty one: the name that the operator chose, if there is one.
std::string read_model_name(Fields& fields, const CodecContext& context);

/// Fields of all dialects but the prompt, the length, stop strings and log-probabilities.
CommonFields read_shared_fields(Fields& fields, const CodecContext& context, Job& job);

/// Messages through the template.
Prompt chat_prompt(const std::vector<ChatMessage>& messages, const ChatEnd& end,
                   const CodecContext& context);

/// Ids of a raw prompt and what follows it, with the masks between; where they hold mask tokens
/// these are gaps to fill. With nothing given the model's start token.
Prompt raw_prompt(std::vector<TokenId> ids, std::vector<TokenId> suffix, const CommonFields& common,
                  const Backend& backend);

/// The canvases of a prompt: `n` of them.
void add_canvases(const Prompt& prompt, const CommonFields& common, const LengthRules& rules,
                  const CodecContext& context, Job& job);

void check_num_canvases(size_t num_prompts, const CodecContext& context, const Job& job,
                        const char* param);

/// Unknown fields are named in the log, each once.
void finish_reading(const Fields& fields, const CodecContext& context);

}  // namespace bicached
