#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bicached/tokenizer.h"

namespace bicached {

struct ChatMessage {
  std::string role;     // system, developer, user, assistant, tool
  std::string content;  // text parts joined
  // For templates that know tools; empty: none.
  std::string tool_calls = {};    // a JSON list, as OpenAI's
  std::string tool_call_id = {};  // of a message with role tool
  std::string name = {};
};

/// A rendered chat: pieces in order. The texts of special tokens (and of other added tokens that
/// the template itself writes) inside messages are untrusted pieces, all else is trusted.
struct RenderedChat {
  std::vector<TextPiece> pieces;
  std::string text() const;
};

/// The checkpoint's Jinja chat template, compiled once, as Hugging Face's apply_chat_template.
///
/// Immutable; any thread. A rendering is bounded in steps, text and nesting, so neither a template
/// nor a message can hang the process or fill its memory.
class ChatTemplate {
 public:
  /// From `chat_template.jinja` or `tokenizer_config.json` (a text, or a list of named ones, of
  /// which "default" is taken), with a trial rendering. Null when the folder has none. Throws
  /// kInvalidModel naming file and reason.
  static std::unique_ptr<ChatTemplate> load(const std::string& folder, const Tokenizer& tokenizer);
  /// From source text; `bos_token`, `eos_token` empty = undefined.
  static std::unique_ptr<ChatTemplate> compile(const std::string& source,
                                               const std::string& bos_token,
                                               const std::string& eos_token,
                                               std::vector<AddedTokenText> added_tokens);
  virtual ~ChatTemplate() = default;

  /// Throws kInvalidRequest, param "messages": no messages, what the template says itself
  /// (`raise_exception`), or why it can't render these.
  virtual RenderedChat render(const std::vector<ChatMessage>& messages,
                              bool add_generation_prompt) const = 0;
  /// Whether it writes calls of tools and messages with role tool itself.
  virtual bool knows_tools() const { return false; }
};

/// A chat as the model takes it, and where leading messages end in it.
struct EncodedChat {
  std::vector<TokenId> ids;
  /// Lengths of id prefixes that other chats with the same leading messages share; ascending, each
  /// > 0 and < ids.size().
  std::vector<int> prefix_lengths;
};

/// Renders and encodes. A candidate prefix is what the ids have in common with those of the leading
/// messages rendered alone; at most 8 are tried, the first messages and the last ones.
EncodedChat encode_chat(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                        const std::vector<ChatMessage>& messages, bool add_generation_prompt);

/// Up to the end of the last message's content, which is to be continued. Throws kInvalidRequest
/// where the template doesn't write that content as it is.
RenderedChat render_continued_chat(const ChatTemplate& chat_template,
                                   std::vector<ChatMessage> messages);

/// As encode_chat, of the same.
EncodedChat encode_continued_chat(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                                  const std::vector<ChatMessage>& messages);

}  // namespace bicached
