#include "http/job.h"

#include "bicached/error.h"
#include "http/job_fields.h"
#include "http/unsupported_fields.h"

namespace bicached {
namespace {

constexpr LengthRules kChatRules{.grows = true, .prompt = "messages"};
constexpr LengthRules kTextRules{};

/// `prompt`: a string, token ids, or a list of either. Absent: nothing is given.
std::vector<std::vector<TokenId>> read_prompts(Fields& fields, const CodecContext& context) {
  const nlohmann::json nothing = "";
  const nlohmann::json* given = fields.find("prompt");
  const nlohmann::json& value = given ? *given : nothing;
  const Tokenizer& tokenizer = *context.backend.tokenizer;
  const ModelInfo& model = context.backend.engine->model();
  const auto read_one = [&](const nlohmann::json& one) {
    if (one.is_string()) {
      return tokenizer.add_special(tokenizer.encode(one.get<std::string>(), true));
    }
    if (!one.is_array()) throw_wrong_type("prompt", "a string, token ids, or a list of these", one);
    if (one.empty()) {
      throw Error(ErrorCode::kInvalidRequest,
                  "prompt has an empty list; send \"\" to begin from nothing", "prompt");
    }
    return read_token_ids(one, "prompt", model.vocab_size);
  };
  const bool is_list =
      value.is_array() && !value.empty() && (value[0].is_string() || value[0].is_array());
  if (!is_list) return {read_one(value)};
  if (value.size() > static_cast<size_t>(context.max_canvases)) {
    throw Error(ErrorCode::kInvalidRequest,
                "prompt has " + std::to_string(value.size()) +
                    " entries; this server takes at most " + std::to_string(context.max_canvases) +
                    " in one request",
                "prompt");
  }
  std::vector<std::vector<TokenId>> prompts;
  for (const nlohmann::json& one : value) prompts.push_back(read_one(one));
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

/// With `echo` and `logprobs` the prompt's tokens are scored, each with its position masked.
void prepare_scores(Job& job, const ModelInfo& model) {
  if (!job.echo || job.num_logprobs < 0) return;
  refuse_unless(model.attention_block == 0, "echo",
                "together with logprobs it asks for log-probabilities of the prompt, which a model "
                "that attends block by block can't give");
  for (GenerateRequest& canvas : job.canvases) {
    refuse_unless(canvas.given.empty(), "echo",
                  "together with logprobs it asks for log-probabilities of the prompt, which one "
                  "with masks doesn't have");
    canvas.wants_end = true;  // as many log-probabilities as tokens were decided
  }
}

/// `prompt` and `suffix`, as far as they are read yet.
void add_raw_canvases(Fields& fields, const CommonFields& common, const LengthRules& rules,
                      const CodecContext& context, Job& job) {
  const std::string suffix = fields.text("suffix").value_or("");
  const auto prompts = read_prompts(fields, context);
  check_num_canvases(prompts.size(), context, job, prompts.size() > 1 ? "prompt" : "n");
  finish_reading(fields, context);
  const std::vector<TokenId> suffix_ids = context.backend.tokenizer->encode(suffix, true);
  for (const std::vector<TokenId>& ids : prompts) {
    add_canvases(raw_prompt(ids, suffix_ids, common, context.backend), common, rules, context, job);
  }
}

}  // namespace

Job parse_chat_request(const std::string& body, const CodecContext& context) {
  const nlohmann::json json = parse_body(body);
  Fields fields(json);
  Job job;
  CommonFields common = read_shared_fields(fields, context, job);
  read_length(fields, "max_tokens", common.length);
  read_length(fields, "max_completion_tokens", common.length);  // the newer name
  job.stops = read_texts(fields, "stop", kMaxStops);
  job.num_logprobs = read_chat_logprobs(fields);
  const std::vector<ChatMessage> messages = read_messages(fields);
  const ChatEnd end = read_chat_end(fields, messages);
  check_num_canvases(1, context, job, "n");
  finish_reading(fields, context);
  add_canvases(chat_prompt(messages, end, context), common, kChatRules, context, job);
  return job;
}

Job parse_text_request(const std::string& body, const CodecContext& context) {
  const nlohmann::json json = parse_body(body);
  Fields fields(json);
  Job job;
  job.dialect = Dialect::kText;
  refuse_unless(!fields.find("messages"), "messages",
                "a chat goes to /v1/chat/completions; here the text is prompt");
  CommonFields common = read_shared_fields(fields, context, job);
  read_length(fields, "max_tokens", common.length);
  job.stops = read_texts(fields, "stop", kMaxStops);
  job.num_logprobs = fields.limited_integer("logprobs", "top_logprobs").value_or(-1);
  job.echo = fields.boolean("echo").value_or(false);
  add_raw_canvases(fields, common, kTextRules, context, job);
  prepare_scores(job, context.backend.engine->model());
  return job;
}

Job parse_fim_request(const std::string& body, const CodecContext& context) {
  const nlohmann::json json = parse_body(body);
  Fields fields(json);
  Job job;  // Mistral answers in the form of a chat
  CommonFields common = read_shared_fields(fields, context, job);
  read_length(fields, "max_tokens", common.length);
  job.stops = read_texts(fields, "stop", kMaxStops);
  add_raw_canvases(fields, common, kTextRules, context, job);
  return job;
}

}  // namespace bicached
