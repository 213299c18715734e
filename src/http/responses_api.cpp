// OpenAI's POST /v1/responses: text in, text out.
#include "bicached/error.h"
#include "http/answer_writer.h"
#include "http/job_fields.h"
#include "http/unsupported_fields.h"

namespace bicached {
namespace {

using nlohmann::json;

constexpr LengthRules kRules{.grows = true, .prompt = "input"};
constexpr size_t kMaxItems = 4096;

/// An item of `input` that is a message; its type may be left out.
ChatMessage read_message(Fields& item, const std::string& field) {
  item.require("role");
  const std::string role = *item.choice("role", {"system", "developer", "user", "assistant"});
  return {role, read_text_parts(item.require("content"), field + ".content",
                                {"input_text", "output_text", "text", "refusal"})};
}

ChatMessage read_call(Fields& item) {
  item.require("name");
  const json call = tool_call(item.text("call_id").value_or(""), *item.text("name"),
                              item.text("arguments").value_or(""));
  ChatMessage message{"assistant", ""};
  message.tool_calls = json::array({call}).dump();
  return message;
}

ChatMessage read_call_output(Fields& item, const std::string& field) {
  ChatMessage message{"tool", ""};
  message.tool_call_id = item.text("call_id").value_or("");
  message.content = read_text_parts(item.require("output"), field + ".output",
                                    {"input_text", "output_text", "text"});
  return message;
}

void read_item(const json& value, const std::string& field, std::vector<ChatMessage>& messages) {
  Fields item(value, field);
  const std::string type = item.text("type").value_or("message");
  if (type == "message") {
    messages.push_back(read_message(item, field));
  } else if (type == "function_call") {
    messages.push_back(read_call(item));
  } else if (type == "function_call_output") {
    messages.push_back(read_call_output(item, field));
  } else if (type != "reasoning") {  // what a model thought before is not told to it again
    refuse_type(field, type, "are message, function_call, function_call_output and reasoning");
  }
}

/// `instructions` and `input`: a text, or a list of items.
std::vector<ChatMessage> read_input(Fields& fields) {
  std::vector<ChatMessage> messages;
  if (const auto instructions = fields.text("instructions")) {
    if (!instructions->empty()) messages.push_back({"system", *instructions});
  }
  const json& input = fields.require("input");
  if (input.is_string()) {
    messages.push_back({"user", input.get<std::string>()});
    return messages;
  }
  if (!input.is_array()) throw_wrong_type("input", "a string or a list of items", input);
  if (input.empty() || input.size() > kMaxItems) {
    throw Error(ErrorCode::kInvalidRequest,
                "input has " + std::to_string(input.size()) + " items; allowed is 1 to " +
                    std::to_string(kMaxItems),
                "input");
  }
  for (size_t i = 0; i < input.size(); ++i) {
    read_item(input[i], "input[" + std::to_string(i) + "]", messages);
  }
  if (messages.empty()) throw Error(ErrorCode::kInvalidRequest, "input has no message", "input");
  return messages;
}

void refuse_what_needs_a_store(Fields& fields) {
  constexpr const char* kNothingStored = "this server keeps no responses; send the whole input";
  for (const char* name : {"previous_response_id", "conversation", "prompt"}) {
    const json* value = fields.find(name);
    refuse_unless(!value || is_nothing(*value), name, kNothingStored);
  }
  refuse_unless(!fields.boolean("background").value_or(false), "background", kNothingStored);
}

void refuse_other_outputs(Fields& fields) {
  if (const json* text = fields.find("text")) {
    Fields inner(*text, "text");
    const json* format = inner.find("format");
    refuse_unless(!format || (format->is_object() && format->value("type", json()) == "text"),
                  "text.format", "only {\"type\": \"text\"} is supported");
  }
  if (const json* include = fields.find("include")) {
    if (!include->is_array()) throw_wrong_type("include", "a list", *include);
    for (const json& what : *include) {
      refuse_unless(what != "message.output_text.logprobs", "include",
                    "log-probabilities are in /v1/chat/completions");
    }
  }
  const std::optional<int> top = fields.limited_integer("top_logprobs");
  refuse_unless(top.value_or(0) == 0, "top_logprobs",
                "log-probabilities are in /v1/chat/completions");
  fields.choice("truncation", {"auto", "disabled"});
  fields.ignore({"reasoning", "max_tool_calls"});
}

/// Fields that come back as they were sent, or as they count.
OrderedJson repeated_fields(Fields& fields, const CommonFields& common) {
  const auto given = [&](const char* name, OrderedJson otherwise) -> OrderedJson {
    const json* found = fields.find(name);
    return found ? OrderedJson(*found) : otherwise;
  };
  const SamplingParams& sampling = common.request.sampling;
  const json* metadata = fields.find("metadata");
  if (metadata && !metadata->is_object()) throw_wrong_type("metadata", "an object", *metadata);
  OrderedJson out;
  out["instructions"] = given("instructions", nullptr);
  out["max_output_tokens"] = nullptr;
  if (common.length.max_tokens) out["max_output_tokens"] = *common.length.max_tokens;
  out["metadata"] = given("metadata", OrderedJson::object());
  out["parallel_tool_calls"] = fields.boolean("parallel_tool_calls").value_or(true);
  out["reasoning"] = {{"effort", nullptr}, {"summary", nullptr}};
  out["store"] = false;
  out["temperature"] = sampling.temperature;
  out["text"]["format"]["type"] = "text";
  out["tool_choice"] = given("tool_choice", "auto");
  out["tools"] = given("tools", OrderedJson::array());
  out["top_p"] = sampling.top_p;
  out["truncation"] = given("truncation", "disabled");
  const json* user = fields.find("user");
  if (user && user->is_string()) out["user"] = *user;
  return out;
}

class ResponsesWriter final : public AnswerWriter {
 public:
  ResponsesWriter(const Job& job, const std::string& request_id)
      : job_(job), id_(request_id), created_(unix_time()) {}

  std::string plain(const std::vector<Choice>& choices,
                    const std::vector<ChoiceDelta>& wholes) override {
    text_ = wholes[0].text;
    return dump_json(response(status_of(choices[0]), &choices));
  }

  std::string begin(size_t) override {
    std::string events = event("response.created", {{"response", response("in_progress")}});
    events += event("response.in_progress", {{"response", response("in_progress")}});
    OrderedJson item = message("in_progress");
    item["content"] = OrderedJson::array();
    events += event("response.output_item.added", {{"output_index", 0}, {"item", item}});
    return events + event("response.content_part.added", in_part({{"part", part("")}}));
  }
  std::string text(size_t, const ChoiceDelta& delta) override {
    if (delta.text.empty()) return "";
    text_ += delta.text;
    return event("response.output_text.delta",
                 in_part({{"delta", delta.text}, {"logprobs", OrderedJson::array()}}));
  }
  std::string finish(size_t, const Choice& choice) override {
    std::string events = event("response.output_text.done",
                               in_part({{"text", text_}, {"logprobs", OrderedJson::array()}}));
    events += event("response.content_part.done", in_part({{"part", part(text_)}}));
    return events + event("response.output_item.done",
                          {{"output_index", 0}, {"item", message(status_of(choice))}});
  }
  std::string end(const std::vector<Choice>& choices) override {
    const std::string status = status_of(choices[0]);
    return event("response." + status, {{"response", response(status, &choices)}});
  }
  std::string failure(const OrderedJson& error) override {
    const OrderedJson& about = error.at("error");
    OrderedJson failed = response("failed");
    failed["error"] = {{"code", "server_error"}, {"message", about.at("message")}};
    return event("error", {{"code", about.at("code")},
                           {"message", about.at("message")},
                           {"param", about.at("param")}}) +
           event("response.failed", {{"response", failed}});
  }

 private:
  static std::string status_of(const Choice& choice) {
    return choice.finish() == FinishReason::kLength ? "incomplete" : "completed";
  }

  std::string event(const std::string& type, const OrderedJson& members) {
    OrderedJson body;
    body["type"] = type;
    body["sequence_number"] = num_events_++;
    body.update(members);
    return named_event(type, body);
  }
  /// Of the only part of the only item.
  OrderedJson in_part(const OrderedJson& members) const {
    OrderedJson body;
    body["item_id"] = "msg_" + id_;
    body["output_index"] = 0;
    body["content_index"] = 0;
    body.update(members);
    return body;
  }
  static OrderedJson part(const std::string& text) {
    OrderedJson out;
    out["type"] = "output_text";
    out["text"] = text;
    out["annotations"] = OrderedJson::array();
    out["logprobs"] = OrderedJson::array();
    return out;
  }
  OrderedJson message(const std::string& status) const {
    OrderedJson out;
    out["id"] = "msg_" + id_;
    out["type"] = "message";
    out["status"] = status;
    out["role"] = "assistant";
    out["content"] = OrderedJson::array({part(text_)});
    return out;
  }
  /// `choices`: once they are finished.
  OrderedJson response(const std::string& status,
                       const std::vector<Choice>* choices = nullptr) const {
    OrderedJson body;
    body["id"] = "resp_" + id_;
    body["object"] = "response";
    body["created_at"] = created_;
    body["status"] = status;
    body["background"] = false;
    body["error"] = nullptr;
    body["incomplete_details"] = nullptr;
    if (status == "incomplete") body["incomplete_details"] = {{"reason", "max_output_tokens"}};
    body["model"] = job_.model;
    body["output"] = OrderedJson::array();
    if (choices) body["output"].push_back(message(status));
    body["previous_response_id"] = nullptr;
    body.update(job_.repeated);
    body["usage"] = nullptr;
    if (!choices) return body;
    const int completion = total_completion_tokens(*choices);
    OrderedJson& usage = body["usage"] = OrderedJson::object();
    usage["input_tokens"] = job_.prompt_tokens;
    usage["input_tokens_details"]["cached_tokens"] = total_cached_tokens(job_, *choices);
    usage["input_tokens_details"]["cache_write_tokens"] = 0;
    usage["output_tokens"] = completion;
    usage["output_tokens_details"]["reasoning_tokens"] = 0;
    usage["total_tokens"] = job_.prompt_tokens + completion;
    return body;
  }

  const Job& job_;
  const std::string id_;
  const int64_t created_;
  std::string text_;
  int num_events_ = 0;
};

}  // namespace

std::unique_ptr<AnswerWriter> make_responses_writer(const Job& job, const std::string& request_id) {
  return std::make_unique<ResponsesWriter>(job, request_id);
}

Job parse_responses_request(const std::string& body, const CodecContext& context) {
  const json parsed = parse_body(body);
  Fields fields(parsed);
  refuse_what_needs_a_store(fields);
  refuse_other_outputs(fields);
  Job job;
  job.dialect = Dialect::kResponses;
  CommonFields common = read_shared_fields(fields, context, job);
  refuse_unless(job.choices_per_prompt == 1, "n", "a response has one output; leave it out");
  refuse_unless(!job.diffusion_stream, "diffusion_stream", "it is in /v1/chat/completions");
  read_length(fields, "max_output_tokens", common.length);
  job.stops = read_texts(fields, "stop", kMaxStops);
  const std::vector<ChatMessage> messages = read_input(fields);
  job.repeated = repeated_fields(fields, common);
  finish_reading(fields, context);
  add_canvases(chat_prompt(messages, {}, context), common, kRules, context, job);
  return job;
}

}  // namespace bicached
