#include "text/jinja/lexer.h"

#include <algorithm>
#include <cctype>

#include "base/utf8.h"
#include "text/jinja/runtime.h"

namespace bicached::jinja {
namespace {

std::string normalize_newlines(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();  // keep_trailing_newline is off
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)), in_(source_) {}

  std::vector<Token> run() {
    while (pos_ < in_.size()) {
      const size_t open = find_open();
      if (open == std::string_view::npos) {
        add(TokenKind::kText, std::string(in_.substr(pos_)));
        break;
      }
      delimiter(open);
    }
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void syntax(const std::string& why) const {
    fail(Failure::kSyntax, why + " (line " + std::to_string(line()) + ")");
  }
  int line() const {
    return 1 + static_cast<int>(std::count(
                   in_.begin(),
                   in_.begin() + static_cast<std::ptrdiff_t>(std::min(pos_, in_.size())), '\n'));
  }
  static bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }
  void add(TokenKind kind, std::string text) {
    if (kind == TokenKind::kText && text.empty()) return;
    tokens_.push_back({kind, std::move(text), 0});
    if (kind == TokenKind::kTagBegin || kind == TokenKind::kPrintBegin)
      tokens_.back().line = line();
  }

  size_t find_open() const {
    for (size_t i = in_.find('{', pos_); i != std::string_view::npos; i = in_.find('{', i + 1)) {
      if (i + 1 < in_.size() && (in_[i + 1] == '{' || in_[i + 1] == '%' || in_[i + 1] == '#'))
        return i;
    }
    return std::string_view::npos;
  }

  /// The text before a delimiter, stripped as its sign and lstrip_blocks say.
  std::string text_before(size_t open, char sign, bool is_print) const {
    std::string_view text = in_.substr(pos_, open - pos_);
    if (sign == '-') {
      while (!text.empty()) {
        size_t end = text.size();
        if (!is_space(previous_code_point(text, end))) break;
        text = text.substr(0, end);
      }
    } else if (sign != '+' && !is_print) {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
      const bool at_line_begin = newline != std::string_view::npos || line_starting_;
      bool blank = true;
      for (size_t p = line_begin; blank && p < text.size();)
        blank = is_space(next_code_point(text, p));
      if (at_line_begin && blank) text = text.substr(0, line_begin);
    }
    return std::string(text);
  }

  void delimiter(size_t open) {
    const char type = in_[open + 1];
    const char sign = open + 2 < in_.size() && (in_[open + 2] == '-' || in_[open + 2] == '+')
                          ? in_[open + 2]
                          : ' ';
    if (type == '{' && sign == '+') {
      add(TokenKind::kText, text_before(open, ' ', true));
      pos_ = open + 2;  // a plus sign of the expression
    } else {
      add(TokenKind::kText, text_before(open, sign, type == '{'));
      pos_ = open + 2 + (sign != ' ');
    }
    if (type == '#') {
      comment();
    } else {
      add(type == '%' ? TokenKind::kTagBegin : TokenKind::kPrintBegin, "");
      expression(type == '%' ? "%}" : "}}", type == '%');
    }
  }

  /// Behind a closing delimiter: its sign says what of the white space after it goes.
  void close(char sign, bool trim_newline) {
    const size_t begin = pos_;
    if (sign == '-') {
      while (pos_ < in_.size()) {
        size_t next = pos_;
        if (!is_space(next_code_point(in_, next))) break;
        pos_ = next;
      }
    } else if (trim_newline && sign != '+' && pos_ < in_.size() && in_[pos_] == '\n') {
      ++pos_;
    }
    line_starting_ = pos_ > begin && in_[pos_ - 1] == '\n';
  }

  void comment() {
    const size_t end = in_.find("#}", pos_);
    if (end == std::string_view::npos) syntax("a comment is not closed");
    const char sign =
        end > pos_ && (in_[end - 1] == '-' || in_[end - 1] == '+') ? in_[end - 1] : ' ';
    pos_ = end + 2;
    close(sign, true);
  }

  void expression(std::string_view end, bool is_tag) {
    std::string open_brackets;
    for (;;) {
      while (pos_ < in_.size() && std::isspace(static_cast<unsigned char>(in_[pos_]))) ++pos_;
      if (pos_ >= in_.size()) syntax("unexpected end of template");
      if (open_brackets.empty()) {
        const bool has_sign = in_[pos_] == '-' || (is_tag && in_[pos_] == '+');
        if (in_.substr(pos_ + has_sign, 2) == end) {
          const char sign = has_sign ? in_[pos_] : ' ';
          pos_ += 2 + has_sign;
          add(is_tag ? TokenKind::kTagEnd : TokenKind::kPrintEnd, "");
          close(sign, is_tag);
          return;
        }
      }
      item(open_brackets);
    }
  }

  void item(std::string& open_brackets) {
    const char c = in_[pos_];
    if (std::isdigit(static_cast<unsigned char>(c))) return number();
    if (c == '\'' || c == '"') return string(c);
    if (is_word(c)) {
      const size_t begin = pos_;
      while (pos_ < in_.size() && is_word(in_[pos_])) ++pos_;
      return add(TokenKind::kName, std::string(in_.substr(begin, pos_ - begin)));
    }
    for (const std::string_view op : {"//", "**", "==", "!=", ">=", "<="}) {
      if (in_.substr(pos_, 2) == op) {
        pos_ += 2;
        return add(TokenKind::kOperator, std::string(op));
      }
    }
    if (std::string_view("+-/*%~[](){}><=.:|,").find(c) == std::string_view::npos) {
      syntax("unexpected character '" + std::string(1, c) + "'");
    }
    if (c == '(' || c == '[' || c == '{') open_brackets += c;
    if (c == ')' || c == ']' || c == '}') {
      const char partner = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open_brackets.empty() || open_brackets.back() != partner)
        syntax("unexpected '" + std::string(1, c) + "'");
      open_brackets.pop_back();
    }
    ++pos_;
    add(TokenKind::kOperator, std::string(1, c));
  }

  void number() {
    const size_t begin = pos_;
    while (pos_ < in_.size() && is_word(in_[pos_])) ++pos_;
    std::string text(in_.substr(begin, pos_ - begin));
    const bool is_float =
        pos_ + 1 < in_.size() && in_[pos_] == '.' && in_[pos_ + 1] >= '0' && in_[pos_ + 1] <= '9';
    if (is_float || text.find_first_not_of("0123456789") != std::string::npos)
      fail_unsupported("the number '" + text + "...' of line " + std::to_string(line()));
    if (text.size() > 1 && text[0] == '0') syntax("an integer must not begin with 0");
    add(TokenKind::kInteger, std::move(text));
  }

  void string(char quote) {
    std::string out;
    for (++pos_; pos_ < in_.size() && in_[pos_] != quote;) {
      if (in_[pos_] != '\\') {
        out += in_[pos_++];
      } else {
        escape(out);
      }
    }
    if (pos_ >= in_.size()) syntax("a string is not closed");
    ++pos_;
    add(TokenKind::kString, std::move(out));
  }

  void escape(std::string& out) {
    if (pos_ + 1 >= in_.size()) syntax("a string is not closed");
    const char e = in_[pos_ + 1];
    constexpr std::string_view kFrom = "ntr\\'\"abfv0", kTo = "\n\t\r\\'\"\a\b\f\v";
    if (e == 'u' || e == 'x' || e == 'U') {
      const size_t width = e == 'x' ? 2 : e == 'u' ? 4 : 8;
      const std::string digits(in_.substr(std::min(pos_ + 2, in_.size()), width));
      if (digits.size() != width || !std::all_of(digits.begin(), digits.end(), [](unsigned char c) {
            return std::isxdigit(c);
          })) {
        syntax("a \\" + std::string(1, e) + " escape is not complete");
      }
      const auto c = static_cast<char32_t>(std::stoul(digits, nullptr, 16));
      if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF))
        fail_unsupported("a string escape of no character");
      append_utf8(out, c);
      pos_ += 2 + width;
    } else if (std::isdigit(static_cast<unsigned char>(e)) || e == 'N') {
      fail_unsupported("the string escape \\" + std::string(1, e));
    } else if (e == '\n') {
      pos_ += 2;
    } else if (const size_t known = kFrom.find(e); known != std::string_view::npos) {
      out += kTo[known];
      pos_ += 2;
    } else {
      out += '\\';  // as Python: an unknown escape stands for itself
      ++pos_;
    }
  }

  std::string source_;
  std::string_view in_;
  size_t pos_ = 0;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace bicached::jinja
