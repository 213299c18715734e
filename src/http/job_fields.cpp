#include "http/job_fields.h"

#include <algorithm>

#include "base/log.h"
#include "bicached/error.h"
#include "bicached/unmasker.h"
#include "http/unsupported_fields.h"

namespace bicached {
namespace {

constexpr int kMaxChoices = 128;  // OpenAI's limit of `n`

void read_stream_fields(Fields& fields, Job& job) {
  job.stream = fields.boolean("stream").value_or(false);
  job.diffusion_stream = fields.boolean("diffusion_stream").value_or(false);
  if (job.diffusion_stream && !job.stream) {
    throw Error(ErrorCode::kInvalidRequest, "diffusion_stream needs \"stream\": true",
                "diffusion_stream");
  }
  // Without a stream it says nothing: clients send it with every request.
  const nlohmann::json* options = fields.find("stream_options");
  if (!options || !job.stream) return;
  Fields inner(*options, "stream_options");
  job.include_usage = inner.boolean("include_usage").value_or(false);
}

}  // namespace

void check_model_name(const std::string& name, const CodecContext& context) {
  if (name == context.backend.model_id) return;
  for (const std::string& alias : context.aliases) {
    if (alias == "*" || alias == name) return;
  }
  throw Error(ErrorCode::kModelNotFound,
              "the model \"" + log_escape(name) + "\" is not served here; this server has \"" +
                  context.backend.model_id + "\"",
              "model");
}

std::string read_model_name(Fields& fields, const CodecContext& context) {
  const std::optional<std::string> name = fields.text("model");
  if (name && !name->empty()) {
    check_model_name(*name, context);
    return *name;
  }
  for (const std::string& alias : context.aliases) {
    if (alias != "*") return alias;
  }
  return context.backend.model_id;
}

/// Clients send the parameters of one algorithm to servers that decode by another.
void report_unused_params(Fields& fields, const std::string& algorithm, NameLog& log) {
  for (const UnmaskerParam& param : unmasker_params()) {
    const std::string name = param.limit.name;
    const auto has_it = [&](const UnmaskerInfo& info) {
      return algorithm == info.name &&
             std::ranges::any_of(info.params,
                                 [&](const UnmaskerParam& one) { return name == one.limit.name; });
    };
    if (!fields.find(param.limit.name) || std::ranges::any_of(unmasker_table(), has_it)) continue;
    log.report({name}, "changes nothing: the algorithm " + algorithm + " has no such parameter");
  }
}

CommonFields read_shared_fields(Fields& fields, const CodecContext& context, Job& job) {
  job.model = read_model_name(fields, context);
  read_stream_fields(fields, job);
  refuse_unsupported_fields(fields, context.unknown_fields);
  job.choices_per_prompt = static_cast<int>(fields.integer("n", 1, kMaxChoices).value_or(1));
  CommonFields common = read_common_fields(fields, context.backend);
  report_unused_params(fields, common.request.decode.algorithm, context.unknown_fields);
  return common;
}

Prompt chat_prompt(const std::vector<ChatMessage>& messages, const ChatEnd& end,
                   const CodecContext& context) {
  const Backend& backend = context.backend;
  EncodedChat chat = encode_messages(messages, end, backend.chat_template, *backend.tokenizer);
  return {std::move(chat.ids), std::move(chat.prefix_lengths)};
}

Prompt raw_prompt(std::vector<TokenId> ids, std::vector<TokenId> suffix, const CommonFields& common,
                  const Backend& backend) {
  const ModelInfo& model = backend.engine->model();
  if (ids.empty() && suffix.empty() && model.start_token >= 0) ids = {model.start_token};
  const auto is_mask = [&](TokenId token) { return token == model.mask_token; };
  if (std::ranges::none_of(ids, is_mask) && std::ranges::none_of(suffix, is_mask)) {
    return {std::move(ids), {}, std::move(suffix), {}};
  }
  std::vector<TokenId> all = std::move(ids);
  if (!suffix.empty()) {
    const auto length = static_cast<size_t>(gap_length(common.length, backend));
    all.insert(all.end(), length, model.mask_token);
    all.insert(all.end(), suffix.begin(), suffix.end());
  }
  const auto first = std::ranges::find_if(all, is_mask);
  const auto end = std::find_if(all.rbegin(), all.rend(), is_mask).base();
  Prompt prompt{{all.begin(), first}, {}, {end, all.end()}, {first, end}};
  std::ranges::replace(prompt.given, model.mask_token, -1);
  return prompt;
}

void add_canvases(const Prompt& prompt, const CommonFields& common, const LengthRules& rules,
                  const CodecContext& context, Job& job) {
  GenerateRequest request = common.request;
  request.prompt_ids = prompt.ids;
  request.suffix_ids = prompt.suffix;
  request.given = prompt.given;
  request.prefix_boundaries = prompt.prefix_boundaries;
  request.wants_canvas = job.diffusion_stream;
  request.sampling.num_top_logprobs = job.num_logprobs;
  choose_gen_length(request, common.length, common.steps, rules, context.backend);
  const auto num_given = std::ranges::count_if(prompt.given, [](TokenId t) { return t >= 0; });
  job.prompt_tokens += static_cast<int64_t>(prompt.ids.size() + prompt.suffix.size()) + num_given;
  for (int i = 0; i < job.choices_per_prompt; ++i) {
    job.canvases.push_back(request);
    // Wraps around: a seed is 64 bits and each choice needs its own.
    job.canvases.back().sampling.seed += static_cast<uint64_t>(i);
  }
}

void check_num_canvases(size_t num_prompts, const CodecContext& context, const Job& job,
                        const char* param) {
  const size_t count = num_prompts * static_cast<size_t>(job.choices_per_prompt);
  if (count <= static_cast<size_t>(context.max_canvases)) return;
  throw Error(ErrorCode::kInvalidRequest,
              "the request asks for " + std::to_string(count) +
                  " choices (prompts times n); this server takes at most " +
                  std::to_string(context.max_canvases) + " in one request",
              param);
}

void finish_reading(const Fields& fields, const CodecContext& context) {
  const std::vector<std::string> unknown = fields.unknown();
  if (unknown.empty()) return;
  context.unknown_fields.report(unknown, "is not known and is ignored", fields.known());
}

}  // namespace bicached
