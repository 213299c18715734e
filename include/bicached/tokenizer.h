#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bicached/request.h"

namespace bicached {

/// A stretch of text and whether added tokens are looked for in it. A chat template's own text is
/// trusted; a special token's text in what a user wrote is not, so `<|eot_id|>` in a message stays
/// letters.
struct TextPiece {
  std::string text;
  bool trusted = false;
};

/// The text of an added token, and whether it is special (`<think>` is added, but not special).
struct AddedTokenText {
  std::string text;
  bool special = false;
};

/// Byte-level byte-pair encoding, exactly as the Hugging Face `tokenizers` library.
///
/// Immutable after load; any thread. Time is linear in the text (a heap instead of the usual
/// quadratic merge loop), memory a small multiple of it.
class Tokenizer {
 public:
  /// Reads `tokenizer.json`, or `vocab.json` + `merges.txt` + `tokenizer_config.json`. Throws
  /// kInvalidModel naming the feature when the files ask for something this class can't represent.
  static std::unique_ptr<Tokenizer> load(const std::string& folder);
  virtual ~Tokenizer() = default;

  /// Text to ids. `trusted`: special tokens in the text become their ids; else they are letters and
  /// only added tokens that are not special (`<think>`) are found. The text must be valid UTF-8
  /// (kInvalidRequest otherwise).
  virtual std::vector<TokenId> encode(std::string_view text, bool trusted) const = 0;
  /// Pieces one after the other, each apart: nothing is looked for across a seam. An untrusted
  /// piece is letters only; no added token is found in it.
  virtual std::vector<TokenId> encode(const std::vector<TextPiece>& pieces) const = 0;
  /// The post-processor's tokens (BOS) around ids, for raw prompts.
  virtual std::vector<TokenId> add_special(std::vector<TokenId> ids) const = 0;

  /// Ids to text. Unknown ids are dropped; broken UTF-8 gives U+FFFD per maximal subpart.
  virtual std::string decode(const std::vector<TokenId>& ids, bool skip_special) const = 0;
  /// The bytes one token stands for (empty: unknown id, or special with skip_special).
  virtual std::string token_bytes(TokenId id, bool skip_special) const = 0;
  /// As in the vocabulary file; empty for an unknown id.
  virtual std::string token_text(TokenId id) const = 0;

  virtual int vocab_size() const = 0;  // greatest id + 1
  virtual std::vector<AddedTokenText> added_token_texts() const = 0;
};

/// Text of a growing id list, whole characters only: bytes that may still become a character are
/// held back. join(deltas) + flush() = decode(ids). One thread.
class Detokenizer {
 public:
  Detokenizer(const Tokenizer& tokenizer, bool skip_special);
  /// What can be released after this token.
  std::string push(TokenId id);
  /// The rest, at the end of the stream.
  std::string flush();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  std::string held_;  // an unfinished UTF-8 sequence, at most 3 bytes
};

}  // namespace bicached
