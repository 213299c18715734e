#pragma once

#include <string>
#include <vector>

#include "bicached/chat_template.h"
#include "bicached/tokenizer.h"
#include "config/json_fields.h"

namespace bicached {

/// The list `messages`, neither empty nor longer than any chat.
const nlohmann::json& require_messages(Fields& fields);

/// `messages`: roles system, developer, user, assistant, tool, function; content a string or `text`
/// parts, which are joined. Images and audio are refused naming the message.
std::vector<ChatMessage> read_messages(Fields& fields);

/// Throws kUnsupportedParameter: "<field>.type is <type>; supported <what>".
[[noreturn]] void refuse_type(const std::string& field, const std::string& type,
                              const std::string& what);
/// The text of a part that has one of these types.
std::string read_text_part(const nlohmann::json& part, const std::string& field,
                           const std::vector<std::string>& types);
/// Text, or a list of such parts; null is nothing.
std::string read_text_parts(const nlohmann::json& content, const std::string& field,
                            const std::vector<std::string>& types);

/// A call of a tool as `ChatMessage::tool_calls` lists it: OpenAI's object.
nlohmann::json tool_call(const std::string& id, const std::string& name,
                         const std::string& arguments);

/// What the prompt ends with.
struct ChatEnd {
  bool add_generation_prompt = true;
  bool continues = false;  // nothing stands behind the last message's content
};

/// `add_generation_prompt` and `continue_final_message`.
ChatEnd read_chat_end(Fields& fields, const std::vector<ChatMessage>& messages);

/// Messages through the model's template and tokenizer. A `developer` message is a `system` one;
/// calls and results of tools are text where the template doesn't know them. Throws
/// kInvalidRequest when there is no template (null).
EncodedChat encode_messages(const std::vector<ChatMessage>& messages, const ChatEnd& end,
                            const ChatTemplate* chat_template, const Tokenizer& tokenizer);

/// The rendered text.
std::string render_messages(const std::vector<ChatMessage>& messages, const ChatEnd& end,
                            const ChatTemplate* chat_template);

}  // namespace bicached
