#pragma once

#include <string>
#include <vector>

#include "bicached/chat_template.h"
#include "bicached/http_server.h"
#include "http/json_fields.h"

namespace bicached {

/// `messages`: roles system, developer, user, assistant; content a string or `text` parts, which
/// are joined. Images, audio and tool calls are refused naming the message.
std::vector<ChatMessage> read_messages(Fields& fields);

/// Messages through the model's template and tokenizer. A `developer` message is a `system` one.
/// Throws kInvalidRequest when there is no template.
EncodedChat encode_messages(const std::vector<ChatMessage>& messages, const Backend& backend);

/// The rendered text.
std::string render_messages(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                            const Backend& backend);

}  // namespace bicached
