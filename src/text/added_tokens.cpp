#include "text/added_tokens.h"

#include "base/utf8.h"

namespace bicached {

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), token_of_node_{-1} {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& content = tokens_[i].content;
    int node = 0;
    for (const char c : content) {
      const uint64_t key = static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(c);
      const auto [edge, is_new] = edges_.emplace(key, static_cast<int>(token_of_node_.size()));
      if (is_new) token_of_node_.push_back(-1);
      node = edge->second;
    }
    if (node == 0) continue;
    token_of_node_[static_cast<size_t>(node)] = static_cast<int>(i);
    first_bytes_[static_cast<unsigned char>(content[0])] = true;
  }
}

AddedTokenMatcher::Match AddedTokenMatcher::longest_at(std::string_view text, size_t pos) const {
  Match best;
  int node = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    const auto edge =
        edges_.find(static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    const int token = token_of_node_[static_cast<size_t>(node)];
    if (token >= 0) best = {token, i + 1 - pos};
  }
  return best;
}

std::vector<AddedTokenMatcher::Stretch> AddedTokenMatcher::split(std::string_view text,
                                                                 bool match_special) const {
  std::vector<Stretch> out;
  size_t done = 0;
  for (size_t pos = 0; pos < text.size();) {
    const Match match =
        first_bytes_[static_cast<unsigned char>(text[pos])] ? longest_at(text, pos) : Match{};
    if (match.token < 0) {
      ++pos;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(match.token)];
    size_t begin = pos, end = pos + match.length;
    pos = end;
    if (token.special && !match_special) continue;
    if (token.single_word) {
      size_t before = begin, after = end;
      if (begin > 0 && is_word_character(previous_code_point(text, before))) continue;
      if (end < text.size() && is_word_character(next_code_point(text, after))) continue;
    }
    if (token.lstrip) {
      for (size_t p = begin; p > done && is_white_space(previous_code_point(text, p));) begin = p;
    }
    if (token.rstrip) {
      for (size_t p = end; p < text.size() && is_white_space(next_code_point(text, p));) end = p;
    }
    if (begin > done) out.push_back({text.substr(done, begin - done), -1});
    out.push_back({text.substr(begin, end - begin), token.id});
    done = end;
  }
  if (done < text.size()) out.push_back({text.substr(done), -1});
  return out;
}

}  // namespace bicached
