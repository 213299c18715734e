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
  bool at(std::string_view text) const {
    return (at(TokenKind::kOperator) || at(TokenKind::kName)) && now().text == text;
  }
  bool before(std::string_view text) const {
    return pos_ + 1 < tokens_.size() && tokens_[pos_ + 1].kind != TokenKind::kString &&
           tokens_[pos_ + 1].text == text;
  }
  std::string take() {
    if (at(TokenKind::kTagBegin) || at(TokenKind::kPrintBegin)) line_ = now().line;
    return pos_ + 1 < tokens_.size() ? tokens_[pos_++].text : now().text;
  }
  bool take(std::string_view text) {
    const bool there = at(text);
    if (there) take();
    return there;
  }
  std::string expect(TokenKind kind) {
    if (!at(kind)) unexpected();
    return take();
  }
  void expect(std::string_view text) {
    if (!take(text)) unexpected();
  }
  [[noreturn]] void syntax(const std::string& why) const {
    fail(Failure::kSyntax, why + " (line " + std::to_string(line_) + ")");
  }
  [[noreturn]] void unexpected() const {
    syntax(at(TokenKind::kPrintEnd) ? "unexpected 'end of print statement'"
           : at(TokenKind::kTagEnd) ? "unexpected 'end of statement block'"
           : at(TokenKind::kEnd)    ? "unexpected end of template"
                                    : "unexpected '" + now().text + "'");
  }

 private:
  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int line_ = 1;
};

}  // namespace bicached::jinja
