// Anthropic's POST /v1/messages: text in, text out.
#include <limits>

#include "bicached/error.h"
#include "http/answer_writer.h"
#include "http/job_fields.h"
#include "http/unsupported_fields.h"

namespace bicached {
namespace {

using nlohmann::json;

constexpr LengthRules kRules{.grows = true, .prompt = "messages"};

json call_of(Fields& block) {
  block.require("name");
  const json* input = block.find("input");
  return tool_call(block.text("id").value_or(""), *block.text("name"),
                   input ? input->dump() : "{}");
}

/// A message of blocks: text, calls of tools, their results. A result is a message of its own.
void read_blocks(const json& blocks, const std::string& role, const std::string& field,
                 std::vector<ChatMessage>& messages) {
  ChatMessage message{role, ""};
  json calls = json::array();
  bool is_empty = true;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string at = field + "[" + std::to_string(i) + "]";
    Fields block(blocks[i], at);
    block.require("type");
    const std::string type = *block.text("type");
    if (type == "tool_result") {
      ChatMessage result{"tool", ""};
      result.tool_call_id = block.text("tool_use_id").value_or("");
      if (const json* content = block.find("content")) {
        result.content = read_text_parts(*content, at + ".content", {"text"});
      }
      messages.push_back(std::move(result));
      continue;
    }
    if (type == "thinking" || type == "redacted_thinking") continue;
    is_empty = false;
    if (type == "tool_use") {
      calls.push_back(call_of(block));
    } else {
      message.content += read_text_part(blocks[i], at, {"text"});
    }
  }
  if (!calls.empty()) message.tool_calls = calls.dump();
  if (!is_empty || blocks.empty()) messages.push_back(std::move(message));
}

std::vector<ChatMessage> read_anthropic_messages(Fields& fields) {
  std::vector<ChatMessage> messages;
  if (const json* system = fields.find("system")) {
    const std::string text = read_text_parts(*system, "system", {"text"});
    if (!text.empty()) messages.push_back({"system", text});
  }
  const json& list = require_messages(fields);
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string field = "messages[" + std::to_string(i) + "]";
    Fields message(list[i], field);
    message.require("role");
    const std::string role = *message.choice("role", {"user", "assistant", "system"});
    const json& content = message.require("content");
    if (content.is_array()) {
      read_blocks(content, role, field + ".content", messages);
    } else {
      messages.push_back({role, read_text_parts(content, field + ".content", {"text"})});
    }
  }
  if (messages.empty()) {
    throw Error(ErrorCode::kInvalidRequest, "messages has no text", "messages");
  }
  return messages;
}

void refuse_other_fields(Fields& fields, NameLog& log) {
  for (const char* name : {"output_format", "mcp_servers", "container"}) {
    const json* value = fields.find(name);
    refuse_unless(!value || is_nothing(*value), name, "this server can't do it; leave it out");
  }
  if (const json* config = fields.find("output_config")) {
    Fields inner(*config, "output_config");
    refuse_unless(!inner.find("format"), "output_config.format",
                  "this server can't constrain the output; leave it out");
  }
  // Agents send it with every request. What a model thought is left out of the prompt anyhow.
  if (fields.find("context_management")) {
    log.report({"context_management"}, "is answered with the whole context");
  }
}

/// A leave to think, which a model that was not trained to does not take.
void read_thinking(Fields& fields, NameLog& log) {
  const json* value = fields.find("thinking");
  if (!value) return;
  Fields thinking(*value, "thinking");
  thinking.require("type");
  const std::string type = *thinking.choice("type", {"enabled", "disabled", "adaptive"});
  if (type == "enabled") {
    thinking.require("budget_tokens");
    thinking.integer("budget_tokens", 1, std::numeric_limits<int>::max());
  }
  if (type != "disabled") log.report({"thinking"}, "is answered at once: the model does not think");
}

/// An assistant's turn at the end is to be gone on with.
Prompt prompt_of(const std::vector<ChatMessage>& messages, const CodecContext& context) {
  const bool continues = messages.back().role == "assistant";
  return chat_prompt(messages, {!continues, continues}, context);
}

class MessagesWriter final : public AnswerWriter {
 public:
  MessagesWriter(const Job& job, const std::string& request_id) : job_(job), id_(request_id) {}

  std::string plain(const std::vector<Choice>& choices,
                    const std::vector<ChoiceDelta>& wholes) override {
    OrderedJson body = message();
    body["content"].push_back(block(wholes[0].text));
    body.update(ending(choices[0]));
    body["usage"] = usage(&choices);
    return dump_json(body);
  }

  std::string begin(size_t) override {
    OrderedJson body = message();
    body["stop_reason"] = body["stop_sequence"] = nullptr;
    body["usage"] = usage(nullptr);
    return event("message_start", {{"message", body}}) +
           event("content_block_start", {{"index", 0}, {"content_block", block("")}});
  }
  std::string text(size_t, const ChoiceDelta& delta) override {
    if (delta.text.empty()) return "";
    return event("content_block_delta",
                 {{"index", 0}, {"delta", {{"type", "text_delta"}, {"text", delta.text}}}});
  }
  std::string finish(size_t, const Choice&) override {
    return event("content_block_stop", {{"index", 0}});
  }
  std::string end(const std::vector<Choice>& choices) override {
    return event("message_delta", {{"delta", ending(choices[0])}, {"usage", usage(&choices)}}) +
           event("message_stop", OrderedJson::object());
  }
  std::string failure(const OrderedJson& error) override {
    return event("error", {{"error", error.at("error")}});
  }

 private:
  static std::string event(const std::string& type, const OrderedJson& members) {
    OrderedJson body;
    body["type"] = type;
    body.update(members);
    return named_event(type, body);
  }
  static OrderedJson block(const std::string& text) {
    OrderedJson out;
    out["type"] = "text";
    out["text"] = text;
    return out;
  }
  static OrderedJson ending(const Choice& choice) {
    const std::string& stop = choice.stop_string();
    OrderedJson out;
    out["stop_reason"] = choice.finish() == FinishReason::kLength ? "max_tokens"
                         : stop.empty()                           ? "end_turn"
                                                                  : "stop_sequence";
    out["stop_sequence"] = stop.empty() ? OrderedJson() : OrderedJson(stop);
    return out;
  }
  OrderedJson message() const {
    OrderedJson body;
    body["id"] = "msg_" + id_;
    body["type"] = "message";
    body["role"] = "assistant";
    body["model"] = job_.model;
    body["content"] = OrderedJson::array();
    return body;
  }
  /// Tokens from the cache count apart. `choices`: null before there are numbers.
  OrderedJson usage(const std::vector<Choice>* choices) const {
    const int64_t cached = choices ? total_cached_tokens(job_, *choices) : 0;
    OrderedJson out;
    out["input_tokens"] = job_.prompt_tokens - cached;
    out["cache_creation_input_tokens"] = 0;
    out["cache_read_input_tokens"] = cached;
    out["output_tokens"] = choices ? total_completion_tokens(*choices) : 0;
    return out;
  }

  const Job& job_;
  const std::string id_;
};

}  // namespace

std::unique_ptr<AnswerWriter> make_messages_writer(const Job& job, const std::string& request_id) {
  return std::make_unique<MessagesWriter>(job, request_id);
}

Job parse_messages_request(const std::string& body, const CodecContext& context) {
  const json parsed = parse_body(body);
  Fields fields(parsed);
  refuse_other_fields(fields, context.unknown_fields);
  read_thinking(fields, context.unknown_fields);
  Job job;
  job.dialect = Dialect::kMessages;
  CommonFields common = read_shared_fields(fields, context, job);
  refuse_unless(job.choices_per_prompt == 1, "n", "a message has one content; leave it out");
  refuse_unless(!job.diffusion_stream, "diffusion_stream", "it is in /v1/chat/completions");
  read_length(fields, "max_tokens", common.length);
  job.stops = read_texts(fields, "stop_sequences", kMaxStops);
  const std::vector<ChatMessage> messages = read_anthropic_messages(fields);
  finish_reading(fields, context);
  add_canvases(prompt_of(messages, context), common, kRules, context, job);
  return job;
}

int64_t count_message_tokens(const std::string& body, const CodecContext& context) {
  const json parsed = parse_body(body);
  Fields fields(parsed);
  read_model_name(fields, context);
  return static_cast<int64_t>(prompt_of(read_anthropic_messages(fields), context).ids.size());
}

}  // namespace bicached
