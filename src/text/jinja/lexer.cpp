#include "text/jinja/lexer.h"

#include <algorithm>
#include <cctype>

#include "base/utf8.h"
#include "text/jinja/run.h"

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
      size_t open = in_.find('{', pos_);
      while (open < in_.size() && kSecond.find(in_.substr(open + 1, 1)) == std::string_view::npos) {
        open = in_.find('{', open + 1);
      }
      if (open >= in_.size() - 1) {
        add(TokenKind::kText, std::string(in_.substr(pos_)));
        break;
      }
      delimiter(open);
    }
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  static constexpr std::string_view kSecond = "{%#";  // of a delimiter

  [[noreturn]] void syntax(const std::string& why) {
    fail(Failure::kSyntax, why + " (line " + std::to_string(line()) + ")");
  }
  int line() {
    const size_t pos = std::min(pos_, in_.size());
    line_ += static_cast<int>(std::ranges::count(in_.substr(counted_, pos - counted_), '\n'));
    counted_ = pos;
    return line_;
  }
  static bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }
  void add(TokenKind kind, std::string text) {
    if (kind != TokenKind::kText || !text.empty())
      tokens_.push_back({kind, std::move(text), line()});
  }
  char at(size_t pos) const { return pos < in_.size() ? in_[pos] : '\0'; }
  /// What says how white space goes: '-', '+' or ' ' for neither.
  static char sign_of(char c) { return c == '-' || c == '+' ? c : ' '; }

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
    const bool plus = type == '{' && at(open + 2) == '+';  // a sign of the expression
    const char sign = plus ? ' ' : sign_of(at(open + 2));
    add(TokenKind::kText, text_before(open, sign, type == '{'));
    pos_ = open + 2 + (sign != ' ');
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
    const char sign = end > pos_ ? sign_of(in_[end - 1]) : ' ';
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
    if (std::string_view("+-/*%~[](){}><=.:|,").find(c) == std::string_view::npos)
      syntax("unexpected character '" + std::string(1, c) + "'");
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
    const bool is_float = at(pos_) == '.' && std::isdigit(static_cast<unsigned char>(at(pos_ + 1)));
    if (is_float || text.find_first_not_of("0123456789") != std::string::npos)
      fail_unsupported("the number '" + text + "...' of line " + std::to_string(line()));
    if (text.size() > 1 && text[0] == '0') syntax("an integer must not begin with 0");
    add(TokenKind::kInteger, std::move(text));
  }

  void string(char quote) {
    std::string out;
    for (++pos_; pos_ < in_.size() && in_[pos_] != quote;) {
      if (in_[pos_] == '\\') {
        escape(out);
      } else {
        out += in_[pos_++];
      }
    }
    if (pos_ >= in_.size()) syntax("a string is not closed");
    ++pos_;
    add(TokenKind::kString, std::move(out));
  }

  /// As Python: an unknown escape stands for itself.
  void escape(std::string& out) {
    constexpr std::string_view kFrom = "ntr\\'\"abfv", kTo = "\n\t\r\\'\"\a\b\f\v";
    const char e = at(pos_ + 1);
    pos_ += 2;
    if (e == 'u' || e == 'x' || e == 'U') {
      const size_t width = e == 'x' ? 2 : e == 'u' ? 4 : 8;
      const std::string digits(in_.substr(std::min(pos_, in_.size()), width));
      if (digits.size() != width ||
          digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
        syntax("a \\" + std::string(1, e) + " escape is not complete");
      }
      const auto c = static_cast<char32_t>(std::stoul(digits, nullptr, 16));
      if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF))
        fail_unsupported("a string escape of no character");
      append_utf8(out, c);
      pos_ += width;
    } else if (std::isdigit(static_cast<unsigned char>(e)) || e == 'N') {
      fail_unsupported("the string escape \\" + std::string(1, e));
    } else if (const size_t known = kFrom.find(e); known != std::string_view::npos) {
      out += kTo[known];
    } else if (e != '\n') {
      out += '\\';
      --pos_;
    }
  }

  const std::string source_;
  const std::string_view in_;
  size_t pos_ = 0;
  int line_ = 1;  // at `counted_`
  size_t counted_ = 0;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace bicached::jinja
