#include "app/pinned_prefixes.h"

#include "bicached/error.h"

namespace bicached {
namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
  throw Error(ErrorCode::kInvalidSettings, name + ": " + why, "pinned_prefixes");
}

std::vector<TokenId> encode_prefix(const std::string& prompt, const TextTools& text,
                                   const std::string& name) {
  const Tokenizer& tokenizer = *text.tokenizer;
  if (!text.chat_template) return tokenizer.add_special(tokenizer.encode(prompt, true));
  // What is shared by all chats with this system prompt doesn't depend on what the user asks.
  EncodedChat chat;
  try {
    chat = encode_chat(*text.chat_template, tokenizer, {{"system", prompt}, {"user", "x"}}, true);
  } catch (const Error& error) {
    refuse(name, std::string("the model's chat template refuses it: ") + error.what());
  }
  if (chat.prefix_lengths.empty()) {
    refuse(name, "in the model's chat template a system message is no prefix of a chat");
  }
  chat.ids.resize(static_cast<size_t>(chat.prefix_lengths.front()));
  return chat.ids;
}

}  // namespace

std::vector<std::vector<TokenId>> encode_pinned_prefixes(const CacheSettings& settings,
                                                         const TextTools& text,
                                                         const ModelInfo& model) {
  const std::vector<std::string>& texts = settings.pinned_prefixes;
  std::vector<std::vector<TokenId>> prefixes;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string name = "pinned_prefixes[" + std::to_string(i) + "]";
    if (texts[i].empty()) refuse(name, "the text is empty");
    prefixes.push_back(encode_prefix(texts[i], text, name));
    const std::string length = "has " + std::to_string(prefixes.back().size()) + " tokens; ";
    if (prefixes.back().size() < static_cast<size_t>(settings.min_prefix_len)) {
      refuse(name, length + "less than min_prefix_len, " + std::to_string(settings.min_prefix_len) +
                       ", are never reused. A prompt that has commas goes into a file of settings");
    }
    const size_t longest = static_cast<size_t>(model.max_length);
    if (prefixes.back().size() >= longest) {
      refuse(name, length + "the model's longest canvas, with question and answer, is " +
                       std::to_string(longest));
    }
  }
  return prefixes;
}

}  // namespace bicached
