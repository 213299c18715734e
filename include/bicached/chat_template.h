#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bicached/tokenizer.h"

namespace bicached {

struct ChatMessage {
  std::string role;     // system, developer, user, assistant, tool
  std::string content;  // text parts joined
};

/// A rendered chat: pieces in order (the template's own text trusted, message content not) and, for
/// prefix reuse, after which piece each message ends.
struct RenderedChat {
  std::vector<TextPiece> pieces;
  std::vector<size_t> message_ends;  // pieces [0, message_ends[i]) hold messages 0..i
  std::string text() const;
};

/// The checkpoint's Jinja chat template, compiled once.
///
/// Immutable; any thread. Never made from a request's text: a template is a program and could stop
/// the process, so the checkpoint's is compiled and tried at start-up, with a size and time limit.
class ChatTemplate {
 public:
  /// From `chat_template.jinja` or `tokenizer_config.json`. Throws kInvalidModel naming file and
  /// reason.
  static std::unique_ptr<ChatTemplate> load(const std::string& folder);
  /// From source text; `bos_token`, `eos_token` empty = undefined.
  static std::unique_ptr<ChatTemplate> compile(const std::string& source,
                                               const std::string& bos_token,
                                               const std::string& eos_token);
  virtual ~ChatTemplate() = default;

  /// Throws kInvalidRequest with the template's own message (`raise_exception`), param "messages".
  virtual RenderedChat render(const std::vector<ChatMessage>& messages,
                              bool add_generation_prompt) const = 0;
};

}  // namespace bicached
