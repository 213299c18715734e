#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "bicached/request.h"

namespace bicached {

/// The byte-level alphabet: every byte has a printable symbol, by which vocabularies are written.
/// The bytes a vocabulary entry stands for; false when a character of it is no symbol.
bool symbols_to_bytes(std::string_view symbols, std::string& bytes);
std::string bytes_to_symbols(std::string_view bytes);

/// Vocabulary and merges over bytes. Immutable; any thread.
class Bpe {
 public:
  struct Merge {
    TokenId left = 0, right = 0, merged = 0;
  };

  /// `entries`: bytes and id of every entry that can be written in bytes, each single byte among
  /// them; `merges` by rank.
  Bpe(const std::vector<std::pair<std::string, TokenId>>& entries, const std::vector<Merge>& merges,
      bool ignore_merges);

  /// Appends the ids of one pre-token. n log n in its length.
  void encode(std::string_view word, std::vector<TokenId>& ids) const;

 private:
  struct Target {
    int rank = 0;
    TokenId merged = 0;
  };
  const Target* find(TokenId left, TokenId right) const;

  bool ignore_merges_;
  std::array<TokenId, 256> byte_ids_{};
  std::unordered_map<std::string, TokenId> words_;  // only with ignore_merges
  std::unordered_map<uint64_t, Target> merges_;
};

}  // namespace bicached
