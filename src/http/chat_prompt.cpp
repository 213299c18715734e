#include "http/chat_prompt.h"

#include <algorithm>

#include "bicached/error.h"

namespace bicached {
namespace {

constexpr size_t kMaxMessages = 4096;

std::string read_part(const nlohmann::json& part, const std::string& field) {
  Fields fields(part, field);
  const nlohmann::json& type = fields.require("type");
  if (type == "text") {
    const nlohmann::json& text = fields.require("text");
    if (!text.is_string()) throw_wrong_type(field + ".text", "a string", text);
    return text.get<std::string>();
  }
  if (!type.is_string()) throw_wrong_type(field + ".type", "a string", type);
  throw Error(ErrorCode::kUnsupportedParameter,
              field + ".type is \"" + type.get<std::string>().substr(0, 64) +
                  "\"; only \"text\" is supported: the model reads no images, audio or files",
              field);
}

std::string read_content(Fields& message, const std::string& field) {
  const nlohmann::json& content = message.require("content");
  if (content.is_string()) return content.get<std::string>();
  const std::string path = field + ".content";
  if (!content.is_array()) throw_wrong_type(path, "a string or a list of text parts", content);
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    text += read_part(content[i], path + "[" + std::to_string(i) + "]");
  }
  return text;
}

ChatMessage read_message(const nlohmann::json& value, const std::string& field) {
  Fields message(value, field);
  if (!message.find("role")) message.require("role");
  const std::string role = *message.text("role");
  if (role == "tool" || role == "function") {
    throw Error(ErrorCode::kUnsupportedParameter,
                field + ".role is \"" + role + "\"; this server has no tools", field + ".role");
  }
  message.choice("role", {"system", "developer", "user", "assistant"});
  for (const char* name : {"tool_calls", "function_call", "audio"}) {
    const nlohmann::json* call = message.find(name);
    if (!call || call->empty()) continue;
    throw Error(ErrorCode::kUnsupportedParameter, message.path_of(name) + " is not supported",
                message.path_of(name));
  }
  return {role, read_content(message, field)};
}

const ChatTemplate& template_of(const Backend& backend) {
  if (backend.chat_template) return *backend.chat_template;
  throw Error(ErrorCode::kInvalidRequest,
              "the model has no chat template; use /v1/completions with a raw prompt", "messages");
}

RenderedChat render(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                    const Backend& backend) {
  const ChatTemplate& chat_template = template_of(backend);
  const auto is_developer = [](const ChatMessage& m) { return m.role == "developer"; };
  if (std::none_of(messages.begin(), messages.end(), is_developer)) {
    return chat_template.render(messages, add_generation_prompt);
  }
  // OpenAI's newer name of `system`; the checkpoints' templates were written before it.
  std::vector<ChatMessage> renamed = messages;
  for (ChatMessage& message : renamed) {
    if (is_developer(message)) message.role = "system";
  }
  return chat_template.render(renamed, add_generation_prompt);
}

}  // namespace

std::vector<ChatMessage> read_messages(Fields& fields) {
  const nlohmann::json& list = fields.require("messages");
  if (!list.is_array()) throw_wrong_type("messages", "a list of messages", list);
  if (list.empty() || list.size() > kMaxMessages) {
    throw Error(ErrorCode::kInvalidRequest,
                "messages has " + std::to_string(list.size()) + " entries; allowed is 1 to " +
                    std::to_string(kMaxMessages),
                "messages");
  }
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < list.size(); ++i) {
    messages.push_back(read_message(list[i], "messages[" + std::to_string(i) + "]"));
  }
  return messages;
}

ChatPrompt encode_messages(const std::vector<ChatMessage>& messages, const Backend& backend) {
  const RenderedChat chat = render(messages, true, backend);
  ChatPrompt prompt;
  prompt.ids = backend.tokenizer->encode(chat.pieces);
  return prompt;
}

std::string render_messages(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                            const Backend& backend) {
  return render(messages, add_generation_prompt, backend).text();
}

}  // namespace bicached
