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

struct ChatPrompt {
  std::vector<TokenId> ids;
  std::vector<int> prefix_boundaries;  // after which tokens a message ends
};

/// Messages through the model's template and tokenizer. A `developer` message is a `system` one
/// where the template refuses the newer name. Throws kInvalidRequest when there is no template.
ChatPrompt encode_messages(const std::vector<ChatMessage>& messages, const Backend& backend);

/// The rendered text.
std::string render_messages(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                            const Backend& backend);

}  // namespace bicached
