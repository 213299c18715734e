#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/value.h"

namespace bicached::jinja {

enum class TokenKind {
  kText,
  kPrintBegin,
  kPrintEnd,
  kTagBegin,
  kTagEnd,
  kName,
  kString,
  kInteger,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  int line = 0;
};

/// Cuts a template into tokens; white space control is done here.
std::vector<Token> tokenize(std::string_view source);

/// Walks over tokens: what a parser asks them.
class TokenReader {
 public:
  explicit TokenReader(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& now() const { return tokens_[pos_]; }
  bool at(TokenKind kind) const { return now().kind == kind; }
  /// At an operator or name of that text.
  bool at(std::string_view text) const { return is_word(now(), text); }
  bool before(std::string_view text) const {
    return pos_ + 1 < tokens_.size() && is_word(tokens_[pos_ + 1], text);
  }
  std::string take() { return pos_ + 1 < tokens_.size() ? tokens_[pos_++].text : now().text; }
  template <class What>
  bool take(What what) {
    const bool there = at(what);
    if (there) take();
    return there;
  }
  template <class What>
  std::string expect(What what) {
    if (!at(what)) unexpected();
    return take();
  }
  [[noreturn]] void syntax(const std::string& why) const {
    fail(Failure::kSyntax, why + " (line " + std::to_string(now().line) + ")");
  }
  [[noreturn]] void unexpected() const {
    syntax(at(TokenKind::kPrintEnd) ? "unexpected 'end of print statement'"
           : at(TokenKind::kTagEnd) ? "unexpected 'end of statement block'"
           : at(TokenKind::kEnd)    ? "unexpected end of template"
                                    : "unexpected '" + now().text + "'");
  }

 private:
  static bool is_word(const Token& token, std::string_view text) {
    return (token.kind == TokenKind::kOperator || token.kind == TokenKind::kName) &&
           token.text == text;
  }

  std::vector<Token> tokens_;
  size_t pos_ = 0;
};

}  // namespace bicached::jinja
