#pragma once

#include <string>
#include <vector>

#include "bicached/chat_template.h"
#include "bicached/error.h"
#include "bicached/tokenizer.h"

namespace bicached {

/// Token = byte; 256 is the end, 257 the mask, as in FakeDenoiser. In trusted text `<end>` is 256.
class FakeTokenizer final : public Tokenizer {
 public:
  std::vector<TokenId> encode(std::string_view text, bool trusted) const override {
    std::vector<TokenId> ids;
    for (size_t i = 0; i < text.size(); ++i) {
      if (trusted && text.substr(i).starts_with("<end>")) {
        ids.push_back(256);
        i += 4;
      } else {
        ids.push_back(static_cast<unsigned char>(text[i]));
      }
    }
    return ids;
  }
  std::vector<TokenId> encode(const std::vector<TextPiece>& pieces) const override {
    std::vector<TokenId> ids;
    for (const TextPiece& piece : pieces) {
      for (TokenId id : encode(piece.text, piece.trusted)) ids.push_back(id);
    }
    return ids;
  }
  std::vector<TokenId> add_special(std::vector<TokenId> ids) const override { return ids; }
  std::string decode(const std::vector<TokenId>& ids, bool skip_special) const override {
    std::string text;
    for (TokenId id : ids) text += token_bytes(id, skip_special);
    return text;
  }
  std::string token_bytes(TokenId id, bool skip_special) const override {
    if (id == 256 || id == 257) return skip_special ? "" : token_text(id);
    return id >= 0 && id < 256 ? std::string(1, static_cast<char>(id)) : "";
  }
  std::string token_text(TokenId id) const override {
    return id == 256 ? "<end>" : id == 257 ? "<mask>" : token_bytes(id, false);
  }
  int vocab_size() const override { return 258; }
  std::vector<AddedTokenText> added_token_texts() const override {
    return {{"<end>", true}, {"<mask>", true}};
  }
};

/// `role:content\n` for each message; roles other than system, user, assistant are refused.
class FakeTemplate final : public ChatTemplate {
 public:
  RenderedChat render(const std::vector<ChatMessage>& messages,
                      bool add_generation_prompt) const override {
    RenderedChat chat;
    for (const ChatMessage& message : messages) {
      if (message.role != "system" && message.role != "user" && message.role != "assistant") {
        throw Error(ErrorCode::kInvalidRequest, "the template knows no role " + message.role,
                    "messages");
      }
      chat.pieces.push_back({message.role + ":", true});
      chat.pieces.push_back({message.content, false});
      chat.pieces.push_back({"\n", true});
    }
    if (add_generation_prompt) chat.pieces.push_back({"assistant:", true});
    return chat;
  }
};

}  // namespace bicached
