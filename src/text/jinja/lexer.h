#pragma once

#include <string>
#include <string_view>
#include <vector>

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
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  int line = 0;
};

/// Cuts a template into tokens; white space control and raw blocks are done here.
std::vector<Token> tokenize(std::string_view source);

}  // namespace bicached::jinja
