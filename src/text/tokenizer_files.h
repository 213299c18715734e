#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"

namespace bicached {

/// What a tokenizer's files say, checked: every field can be represented by our classes.
struct TokenizerSpec {
  std::vector<std::pair<std::string, TokenId>> vocab;  // as written in the file; ids unique
  std::vector<Bpe::Merge> merges;                      // by rank
  bool ignore_merges = false;
  bool nfc = false;
  std::vector<std::string> split_patterns;  // applied one after the other
  std::vector<AddedToken> added_tokens;
  std::vector<TokenId> post_prefix, post_suffix;  // the post-processor's tokens
};

/// Throws kInvalidModel naming file and feature.
TokenizerSpec read_tokenizer_files(const std::string& folder);

/// A JSON file of a model folder: bounded size and depth, valid UTF-8. An empty object where there
/// is none. Throws kInvalidModel.
nlohmann::json read_model_json(const std::string& path);

}  // namespace bicached
