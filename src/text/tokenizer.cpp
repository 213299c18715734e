#include "bicached/tokenizer.h"

#include <algorithm>
#include <memory>

#include "base/utf8.h"
#include "bicached/error.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/normalize.h"
#include "text/regex_split.h"
#include "text/tokenizer_files.h"

namespace bicached {
namespace {

void require_utf8(std::string_view text) {
  const size_t valid = valid_utf8_prefix(text);
  if (valid != text.size()) {
    throw Error(ErrorCode::kInvalidRequest,
                "the text is not valid UTF-8 at byte " + std::to_string(valid));
  }
}

class ByteLevelTokenizer final : public Tokenizer {
 public:
  explicit ByteLevelTokenizer(const TokenizerSpec& spec)
      : bpe_(byte_entries(spec), spec.merges, spec.ignore_merges),
        nfc_(spec.nfc),
        added_(spec.added_tokens),
        raw_matcher_(matcher(spec, false)),
        normalized_matcher_(matcher(spec, true)),
        post_prefix_(spec.post_prefix),
        post_suffix_(spec.post_suffix) {
    for (const std::string& pattern : spec.split_patterns) splits_.emplace_back(pattern);
    for (const auto& [text, id] : spec.vocab) add_entry(text, id);
    for (const AddedToken& token : spec.added_tokens) {
      add_entry(token.content, token.id);
      entries_[static_cast<size_t>(token.id)].special = token.special;
    }
  }

  std::vector<TokenId> encode(std::string_view text, bool trusted) const override {
    require_utf8(text);
    std::vector<TokenId> ids;
    encode_text(text, trusted, ids);
    return ids;
  }

  std::vector<TokenId> encode(const std::vector<TextPiece>& pieces) const override {
    std::vector<TokenId> ids;
    for (const TextPiece& piece : pieces) {
      require_utf8(piece.text);
      if (piece.trusted) {
        encode_text(piece.text, true, ids);
      } else {
        encode_letters(normalize(piece.text), ids);
      }
    }
    return ids;
  }

  std::vector<TokenId> add_special(std::vector<TokenId> ids) const override {
    ids.insert(ids.begin(), post_prefix_.begin(), post_prefix_.end());
    ids.insert(ids.end(), post_suffix_.begin(), post_suffix_.end());
    return ids;
  }

  std::string decode(const std::vector<TokenId>& ids, bool skip_special) const override {
    std::string bytes;
    for (const TokenId id : ids) bytes += token_bytes(id, skip_special);
    return lossy_utf8(bytes);
  }

  std::string token_bytes(TokenId id, bool skip_special) const override {
    const Entry* entry = find_entry(id);
    return entry && !(skip_special && entry->special) ? entry->bytes : "";
  }
  std::string token_text(TokenId id) const override {
    const Entry* entry = find_entry(id);
    return entry ? entry->text : "";
  }
  int vocab_size() const override { return static_cast<int>(entries_.size()); }
  std::vector<AddedTokenText> added_token_texts() const override {
    std::vector<AddedTokenText> out;
    for (const AddedToken& token : added_) out.push_back({token.content, token.special});
    return out;
  }

 private:
  struct Entry {
    std::string text;   // as in the file; empty: no such id
    std::string bytes;  // what it decodes to
    bool special = false;
  };

  static std::vector<std::pair<std::string, TokenId>> byte_entries(const TokenizerSpec& spec) {
    std::vector<std::pair<std::string, TokenId>> out;
    std::string bytes;
    for (const auto& [text, id] : spec.vocab) {
      if (symbols_to_bytes(text, bytes)) out.emplace_back(bytes, id);
    }
    return out;
  }

  static AddedTokenMatcher matcher(const TokenizerSpec& spec, bool normalized) {
    std::vector<AddedToken> tokens;
    for (AddedToken token : spec.added_tokens) {
      if (token.normalized != normalized) continue;
      if (normalized && spec.nfc) token.content = nfc(token.content);
      tokens.push_back(std::move(token));
    }
    return AddedTokenMatcher(std::move(tokens));
  }

  void add_entry(const std::string& text, TokenId id) {
    if (static_cast<size_t>(id) >= entries_.size()) entries_.resize(static_cast<size_t>(id) + 1);
    Entry& entry = entries_[static_cast<size_t>(id)];
    entry.text = text;
    // The decoder takes any token whose characters are all byte symbols for bytes, added or not.
    if (!symbols_to_bytes(text, entry.bytes)) entry.bytes = text;
  }

  const Entry* find_entry(TokenId id) const {
    if (id < 0 || static_cast<size_t>(id) >= entries_.size()) return nullptr;
    const Entry& entry = entries_[static_cast<size_t>(id)];
    return entry.text.empty() ? nullptr : &entry;
  }

  std::string normalize(std::string_view text) const {
    return nfc_ ? nfc(text) : std::string(text);
  }

  /// Added tokens of raw text, then those of the normalized rest, then letters.
  void encode_text(std::string_view text, bool match_special, std::vector<TokenId>& ids) const {
    for (const auto& raw : raw_matcher_.split(text, match_special)) {
      if (raw.id >= 0) {
        ids.push_back(raw.id);
        continue;
      }
      const std::string normalized = normalize(raw.text);
      for (const auto& stretch : normalized_matcher_.split(normalized, match_special)) {
        if (stretch.id >= 0) {
          ids.push_back(stretch.id);
        } else {
          encode_letters(stretch.text, ids);
        }
      }
    }
  }

  void encode_letters(std::string_view normalized, std::vector<TokenId>& ids) const {
    if (normalized.empty()) return;
    std::vector<std::string_view> pieces{normalized};
    for (const RegexSplit& regex : splits_) {
      std::vector<std::string_view> finer;
      for (const std::string_view piece : pieces) regex.split(piece, finer);
      pieces = std::move(finer);
    }
    for (const std::string_view piece : pieces) bpe_.encode(piece, ids);
  }

  Bpe bpe_;
  bool nfc_;
  std::vector<AddedToken> added_;
  AddedTokenMatcher raw_matcher_, normalized_matcher_;
  std::vector<RegexSplit> splits_;
  std::vector<TokenId> post_prefix_, post_suffix_;
  std::vector<Entry> entries_;
};

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::load(const std::string& folder) {
  return std::make_unique<ByteLevelTokenizer>(read_tokenizer_files(folder));
}

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer), skip_special_(skip_special) {}

std::string Detokenizer::push(TokenId id) {
  const std::string bytes = held_ + tokenizer_.token_bytes(id, skip_special_);
  return lossy_utf8(bytes, &held_);
}

std::string Detokenizer::flush() {
  const std::string rest = lossy_utf8(held_);
  held_.clear();
  return rest;
}

}  // namespace bicached
