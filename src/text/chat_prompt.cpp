#include "text/chat_prompt.h"

#include <algorithm>
#include <map>

#include "bicached/error.h"

namespace bicached {
namespace {

using nlohmann::json;

constexpr size_t kMaxMessages = 4096;

/// One call of a tool: OpenAI's object, checked.
json read_call(const json& value, const std::string& field) {
  Fields call(value, field);
  const std::string type = call.text("type").value_or("function");
  if (type != "function") refuse_type(field, type, "is \"function\"");
  Fields function(call.require("function"), field + ".function");
  function.require("name");
  // Some clients send the object itself, not its text.
  const json* arguments = function.find("arguments");
  return tool_call(call.text("id").value_or(""), *function.text("name"),
                   arguments && arguments->is_object() ? arguments->dump()
                                                       : function.text("arguments").value_or(""));
}

json read_calls(Fields& message) {
  json calls = json::array();
  if (const json* list = message.find("tool_calls")) {
    const std::string field = message.path_of("tool_calls");
    if (!list->is_array()) throw_wrong_type(field, "a list", *list);
    for (size_t i = 0; i < list->size(); ++i) {
      calls.push_back(read_call((*list)[i], field + "[" + std::to_string(i) + "]"));
    }
  }
  if (const json* old = message.find("function_call")) {
    calls.push_back(read_call({{"function", *old}}, message.path_of("function_call")));
  }
  return calls;
}

ChatMessage read_message(const json& value, const std::string& field) {
  Fields message(value, field);
  message.require("role");
  ChatMessage out;
  out.role =
      *message.choice("role", {"system", "developer", "user", "assistant", "tool", "function"});
  const bool is_assistant = out.role == "assistant";
  const bool is_result = out.role == "tool" || out.role == "function";
  if (is_result) out.role = "tool";
  if (const json* audio = message.find("audio"); audio && !audio->empty()) {
    throw Error(ErrorCode::kUnsupportedParameter, message.path_of("audio") + " is not supported",
                message.path_of("audio"));
  }
  // A turn that was aborted, refused or only calls tools has no text.
  const json* content =
      is_assistant || is_result ? message.find("content") : &message.require("content");
  if (content) {
    const bool may_refuse = is_assistant;
    out.content = read_text_parts(*content, message.path_of("content"),
                                  may_refuse ? std::vector<std::string>{"text", "refusal"}
                                             : std::vector<std::string>{"text"});
  } else if (is_assistant) {
    out.content = message.text("refusal").value_or("");
  }
  if (is_assistant) {
    const json calls = read_calls(message);
    if (!calls.empty()) out.tool_calls = calls.dump();
  }
  if (is_result) {
    out.tool_call_id = message.text("tool_call_id").value_or("");
    out.name = message.text("name").value_or("");
  }
  return out;
}

const ChatTemplate& checked(const ChatTemplate* chat_template) {
  if (chat_template) return *chat_template;
  throw Error(ErrorCode::kInvalidRequest,
              "the model has no chat template; use /v1/completions with a raw prompt", "messages");
}

/// Calls as the lines of a text.
std::string text_of_calls(const json& calls) {
  std::string text;
  for (const json& call : calls) {
    const json& function = call["function"];
    text += (text.empty() ? "" : "\n") + function["name"].get<std::string>() + "(" +
            function["arguments"].get<std::string>() + ")";
  }
  return text;
}

/// Calls of tools as the assistant's text, their results as the user's: what a model without tools
/// was trained to read.
std::vector<ChatMessage> with_tools_as_text(const std::vector<ChatMessage>& messages) {
  std::vector<ChatMessage> out;
  std::map<std::string, std::string> names;  // of calls, by id
  bool after_result = false;
  for (const ChatMessage& message : messages) {
    const bool is_result = message.role == "tool";
    if (is_result) {
      const auto named = names.find(message.tool_call_id);
      const std::string name = named != names.end() ? named->second : message.name;
      const std::string text =
          (name.empty() ? "Result:\n" : "Result of " + name + ":\n") + message.content;
      if (after_result) {
        out.back().content += "\n" + text;
      } else {
        out.push_back({"user", text});
      }
    } else {
      out.push_back({message.role, message.content});
      if (!message.tool_calls.empty()) {
        const json calls = json::parse(message.tool_calls);
        for (const json& call : calls) {
          names[call["id"].get<std::string>()] = call["function"]["name"].get<std::string>();
        }
        std::string& content = out.back().content;
        content += (content.empty() ? "" : "\n") + text_of_calls(calls);
      }
    }
    after_result = is_result;
  }
  return out;
}

/// As the template takes them. `developer` is OpenAI's newer name of `system`; most templates were
/// written before it.
std::vector<ChatMessage> prepared(std::vector<ChatMessage> messages,
                                  const ChatTemplate& chat_template) {
  for (ChatMessage& message : messages) {
    if (message.role == "developer") message.role = "system";
  }
  return chat_template.knows_tools() ? messages : with_tools_as_text(messages);
}

}  // namespace

json tool_call(const std::string& id, const std::string& name, const std::string& arguments) {
  json call;
  call["id"] = id;
  call["type"] = "function";
  call["function"]["name"] = name;
  call["function"]["arguments"] = arguments;
  return call;
}

void refuse_type(const std::string& field, const std::string& type, const std::string& what) {
  throw Error(ErrorCode::kUnsupportedParameter,
              field + ".type is \"" + type.substr(0, 64) + "\"; supported " + what, field);
}

std::string read_text_part(const json& part, const std::string& field,
                           const std::vector<std::string>& types) {
  Fields fields(part, field);
  const json& type = fields.require("type");
  if (!type.is_string()) throw_wrong_type(field + ".type", "a string", type);
  if (std::ranges::find(types, type.get<std::string>()) == types.end()) {
    std::string list;
    for (const std::string& name : types) list += (list.empty() ? "\"" : ", \"") + name + "\"";
    refuse_type(field, type.get<std::string>(),
                "is " + list + ": the model reads no images, audio or files");
  }
  const char* key = type == "refusal" ? "refusal" : "text";
  fields.require(key);
  return fields.text(key).value_or("");
}

std::string read_text_parts(const json& content, const std::string& field,
                            const std::vector<std::string>& types) {
  if (content.is_null()) return "";
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) throw_wrong_type(field, "a string or a list of text parts", content);
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    text += read_text_part(content[i], field + "[" + std::to_string(i) + "]", types);
  }
  return text;
}

const json& require_messages(Fields& fields) {
  const json& list = fields.require("messages");
  if (!list.is_array()) throw_wrong_type("messages", "a list of messages", list);
  if (list.empty() || list.size() > kMaxMessages) {
    throw Error(ErrorCode::kInvalidRequest,
                "messages has " + std::to_string(list.size()) + " entries; allowed is 1 to " +
                    std::to_string(kMaxMessages),
                "messages");
  }
  return list;
}

std::vector<ChatMessage> read_messages(Fields& fields) {
  const json& list = require_messages(fields);
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < list.size(); ++i) {
    messages.push_back(read_message(list[i], "messages[" + std::to_string(i) + "]"));
  }
  return messages;
}

ChatEnd read_chat_end(Fields& fields, const std::vector<ChatMessage>& messages) {
  const std::optional<bool> prompt = fields.boolean("add_generation_prompt");
  ChatEnd end;
  end.continues = fields.boolean("continue_final_message").value_or(false);
  end.add_generation_prompt = prompt.value_or(true);
  if (!end.continues) return end;
  if (prompt.value_or(false)) {
    throw Error(ErrorCode::kInvalidRequest,
                "continue_final_message and add_generation_prompt are both true; a turn is "
                "continued or a new one begun",
                "continue_final_message");
  }
  if (messages.back().role != "assistant") {
    throw Error(ErrorCode::kInvalidRequest,
                "continue_final_message needs a last message of the assistant, not of the role \"" +
                    messages.back().role + "\"",
                "continue_final_message");
  }
  return end;
}

EncodedChat encode_messages(const std::vector<ChatMessage>& messages, const ChatEnd& end,
                            const ChatTemplate* chat_template, const Tokenizer& tokenizer) {
  const ChatTemplate& there = checked(chat_template);
  const std::vector<ChatMessage> list = prepared(messages, there);
  return end.continues ? encode_continued_chat(there, tokenizer, list)
                       : encode_chat(there, tokenizer, list, end.add_generation_prompt);
}

std::string render_messages(const std::vector<ChatMessage>& messages, const ChatEnd& end,
                            const ChatTemplate* chat_template) {
  const ChatTemplate& there = checked(chat_template);
  const std::vector<ChatMessage> list = prepared(messages, there);
  return (end.continues ? render_continued_chat(there, list)
                        : there.render(list, end.add_generation_prompt))
      .text();
}

}  // namespace bicached
