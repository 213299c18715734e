#include "http/job.h"

#include <algorithm>

#include "base/log.h"
#include "bicached/chat_template.h"
#include "bicached/error.h"
#include "http/chat_prompt.h"
#include "http/decode_fields.h"
#include "http/json_fields.h"

namespace bicached {
namespace {

constexpr int kMaxChoices = 128;  // OpenAI's limit of `n`

/// A raw prompt before it is a canvas.
struct Prompt {
  std::vector<TokenId> ids;
  std::vector<int> prefix_boundaries;
};

void read_stream_fields(Fields& fields, Job& job) {
  job.stream = fields.boolean("stream").value_or(false);
  job.diffusion_stream = fields.boolean("diffusion_stream").value_or(false);
  if (job.diffusion_stream && !job.stream) {
    throw Error(ErrorCode::kInvalidRequest, "diffusion_stream needs \"stream\": true",
                "diffusion_stream");
  }
  const nlohmann::json* options = fields.find("stream_options");
  if (!options) return;
  if (!job.stream) {
    throw Error(ErrorCode::kInvalidRequest, "stream_options needs \"stream\": true",
                "stream_options");
  }
  Fields inner(*options, "stream_options");
  job.include_usage = inner.boolean("include_usage").value_or(false);
}

/// Fields of both dialects but the prompt and the log-probabilities.
CommonFields read_shared_fields(Fields& fields, const CodecContext& context, Job& job) {
  check_model_name(fields.text("model").value_or(context.backend.model_id), context);
  job.model = context.backend.model_id;
  read_stream_fields(fields, job);
  refuse_unsupported_fields(fields);
  job.stops = read_stops(fields);
  job.choices_per_prompt = static_cast<int>(fields.integer("n", 1, kMaxChoices).value_or(1));
  return read_common_fields(fields, context.backend.defaults, context.backend.engine->model());
}

void add_canvases(const Prompt& prompt, const std::vector<TokenId>& suffix,
                  const CommonFields& common, const CodecContext& context, Job& job) {
  GenerateRequest request = common.request;
  request.prompt_ids = prompt.ids;
  request.suffix_ids = suffix;
  request.prefix_boundaries = prompt.prefix_boundaries;
  request.wants_canvas = job.diffusion_stream;
  request.sampling.num_top_logprobs = job.num_logprobs;
  choose_gen_length(request, common, context.backend.defaults, context.backend.engine->model());
  job.prompt_tokens += static_cast<int64_t>(prompt.ids.size() + suffix.size());
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

/// `prompt`: a string, token ids, or a list of either.
std::vector<Prompt> read_prompts(Fields& fields, const CodecContext& context) {
  const nlohmann::json& value = fields.require("prompt");
  const Tokenizer& tokenizer = *context.backend.tokenizer;
  const ModelInfo& model = context.backend.engine->model();
  const auto read_one = [&](const nlohmann::json& one) {
    if (one.is_string()) {
      return Prompt{tokenizer.add_special(tokenizer.encode(one.get<std::string>(), true)), {}};
    }
    if (!one.is_array()) throw_wrong_type("prompt", "a string, token ids, or a list of these", one);
    return Prompt{read_token_ids(one, "prompt", model.vocab_size), {}};
  };
  std::vector<Prompt> prompts;
  const bool is_list =
      value.is_array() && !value.empty() && (value[0].is_string() || value[0].is_array());
  if (!is_list) {
    prompts.push_back(read_one(value));
  } else {
    if (value.size() > static_cast<size_t>(context.max_canvases)) {
      throw Error(ErrorCode::kInvalidRequest,
                  "prompt has " + std::to_string(value.size()) +
                      " entries; this server takes at most " +
                      std::to_string(context.max_canvases) + " in one request",
                  "prompt");
    }
    for (const nlohmann::json& one : value) prompts.push_back(read_one(one));
  }
  for (const Prompt& prompt : prompts) {
    if (prompt.ids.empty()) {
      throw Error(ErrorCode::kInvalidRequest, "prompt is empty; at least one token is needed",
                  "prompt");
    }
  }
  return prompts;
}

int read_chat_logprobs(Fields& fields) {
  const bool wanted = fields.boolean("logprobs").value_or(false);
  const std::optional<int> top = fields.limited_integer("top_logprobs");
  if (top.value_or(0) > 0 && !wanted) {
    throw Error(ErrorCode::kInvalidRequest, "top_logprobs needs \"logprobs\": true",
                "top_logprobs");
  }
  return wanted ? top.value_or(0) : -1;
}

void name_unknown_fields(const Fields& fields, const CodecContext& context) {
  context.unknown_fields.report(fields.unknown());
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

Job parse_chat_request(const std::string& body, const CodecContext& context) {
  const nlohmann::json json = parse_body(body);
  Fields fields(json);
  Job job;
  job.dialect = Dialect::kChat;
  CommonFields common = read_shared_fields(fields, context, job);
  if (const auto longest = fields.limited_integer("max_completion_tokens", "max_tokens")) {
    common.max_tokens = longest;  // the newer of the two names
  }
  job.num_logprobs = read_chat_logprobs(fields);
  const std::vector<ChatMessage> messages = read_messages(fields);
  check_num_canvases(1, context, job, "n");
  name_unknown_fields(fields, context);
  ChatPrompt prompt = encode_messages(messages, context.backend);
  add_canvases({std::move(prompt.ids), std::move(prompt.prefix_boundaries)}, {}, common, context,
               job);
  return job;
}

Job parse_text_request(const std::string& body, const CodecContext& context) {
  const nlohmann::json json = parse_body(body);
  Fields fields(json);
  Job job;
  job.dialect = Dialect::kText;
  const CommonFields common = read_shared_fields(fields, context, job);
  const std::optional<int> logprobs = fields.limited_integer("logprobs", "top_logprobs");
  job.num_logprobs = logprobs.value_or(-1);
  job.echo = fields.boolean("echo").value_or(false);
  const std::string suffix = fields.text("suffix").value_or("");
  const std::vector<Prompt> prompts = read_prompts(fields, context);
  check_num_canvases(prompts.size(), context, job, prompts.size() > 1 ? "prompt" : "n");
  name_unknown_fields(fields, context);
  const std::vector<TokenId> suffix_ids = context.backend.tokenizer->encode(suffix, true);
  for (const Prompt& prompt : prompts) add_canvases(prompt, suffix_ids, common, context, job);
  return job;
}

}  // namespace bicached
