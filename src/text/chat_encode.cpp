#include <algorithm>
#include <random>

#include "bicached/chat_template.h"
#include "bicached/error.h"

namespace bicached {
namespace {

constexpr int kMaxPrefixes = 8;  // each costs a rendering and an encoding

EncodedChat encode_rendered(const RenderedChat& chat, const ChatTemplate& chat_template,
                            const Tokenizer& tokenizer, const std::vector<ChatMessage>& messages) {
  EncodedChat out;
  out.ids = tokenizer.encode(chat.pieces);
  const int count = static_cast<int>(messages.size());
  for (int n = 1; n < count; ++n) {
    if (n > 2 && n < count - (kMaxPrefixes - 2)) continue;
    std::vector<TokenId> leading;
    try {
      leading = tokenizer.encode(
          chat_template.render({messages.begin(), messages.begin() + n}, false).pieces);
    } catch (const Error&) {
      continue;  // a template may refuse leading messages alone
    }
    const auto shared =
        std::mismatch(leading.begin(), leading.end(), out.ids.begin(), out.ids.end()).first -
        leading.begin();
    const int length = static_cast<int>(shared);
    const int before = out.prefix_lengths.empty() ? 0 : out.prefix_lengths.back();
    if (length > before && length < static_cast<int>(out.ids.size()))
      out.prefix_lengths.push_back(length);
  }
  return out;
}

/// Letters that no message has by chance, behind which nothing is kept.
std::string make_mark() {
  std::random_device random;
  std::string mark = "\xF3\xB0\xA0\x82";
  for (int i = 0; i < 4; ++i) mark += std::to_string(random());
  return mark;
}

/// What stands before the mark. False: it is not there.
bool cut_at(const std::string& mark, std::vector<TextPiece>& pieces) {
  for (size_t i = pieces.size(); i-- > 0;) {
    const size_t at = pieces[i].text.rfind(mark);
    if (at == std::string::npos) continue;
    pieces[i].text.resize(at);
    pieces.resize(i + 1);
    return true;
  }
  return false;
}

}  // namespace

EncodedChat encode_chat(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                        const std::vector<ChatMessage>& messages, bool add_generation_prompt) {
  return encode_rendered(chat_template.render(messages, add_generation_prompt), chat_template,
                         tokenizer, messages);
}

RenderedChat render_continued_chat(const ChatTemplate& chat_template,
                                   std::vector<ChatMessage> messages) {
  const std::string mark = make_mark();
  messages.back().content += mark;
  RenderedChat rendered = chat_template.render(messages, false);
  if (!cut_at(mark, rendered.pieces)) {
    throw Error(ErrorCode::kInvalidRequest,
                "the model's chat template does not end with the last message's content, so that "
                "it can't be continued",
                "messages");
  }
  return rendered;
}

EncodedChat encode_continued_chat(const ChatTemplate& chat_template, const Tokenizer& tokenizer,
                                  const std::vector<ChatMessage>& messages) {
  return encode_rendered(render_continued_chat(chat_template, messages), chat_template, tokenizer,
                         messages);
}

}  // namespace bicached
