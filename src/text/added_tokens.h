#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "bicached/request.h"

namespace bicached {

/// An entry of `added_tokens`: text that is one id, found before pre-tokenization.
struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool single_word = false;  // only between non-word characters
  bool lstrip = false;       // swallows the white space before it
  bool rstrip = false;       // ... and after it
  bool normalized = false;   // looked for in normalized text
  bool special = false;
};

/// Finds tokens in text: leftmost, then longest. Immutable, any thread; time is the text's length
/// times the longest token's at worst.
class AddedTokenMatcher {
 public:
  /// `id` -1: text that is no token.
  struct Stretch {
    std::string_view text;
    TokenId id = -1;
  };

  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  /// Cuts `text` into stretches. Without `match_special`, a special token found is passed over, but
  /// still hides other tokens that overlap it (as the reference does).
  std::vector<Stretch> split(std::string_view text, bool match_special) const;

 private:
  struct Match {
    int token = -1;
    size_t length = 0;
  };
  Match longest_at(std::string_view text, size_t pos) const;

  std::vector<AddedToken> tokens_;
  std::unordered_map<uint64_t, int> edges_;  // (node << 8 | byte) -> node
  std::vector<int> token_of_node_;           // -1: no token ends here
  bool first_bytes_[256] = {};
};

}  // namespace bicached
