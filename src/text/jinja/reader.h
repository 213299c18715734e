#pragma once

#include <algorithm>
#include <cctype>
#include <charconv>

#include "base/utf8.h"
#include "text/jinja/run.h"

namespace bicached::jinja {

/// Reads a template's source: the text between delimiters, and the words and signs between these.
class Reader {
 public:
  explicit Reader(std::string_view source) {
    for (size_t i = 0; i < source.size(); ++i) {
      if (source.substr(i, 2) == "\r\n") continue;
      source_ += source[i] == '\r' ? '\n' : source[i];
    }
    if (source_.ends_with('\n')) source_.pop_back();  // keep_trailing_newline is off
    in_ = source_;
  }

  /// Text up to the next delimiter, which is read as well: '{' for "{{", '%' for "{%", 0 at the
  /// end.
  char read_text(std::string& text) {
    for (;;) {
      const auto found = std::adjacent_find(in_.begin() + pos_, in_.end(), opens);
      if (found == in_.end()) break;
      const auto open = static_cast<size_t>(found - in_.begin());
      const char kind = in_[open + 1];
      // In {{+ the sign is one of the expression.
      const char sign = kind == '{' && char_at(open + 2) == '+' ? ' ' : sign_of(char_at(open + 2));
      text += text_before(open, sign, kind != '{');
      pos_ = open + 2 + (sign != ' ');
      if (kind != '#') return kind;
      const size_t end = in_.find("#}", pos_);
      if (end == std::string_view::npos) syntax("a comment is not closed");
      const char end_sign = end > pos_ ? sign_of(in_[end - 1]) : ' ';
      pos_ = end + 2;
      skip_behind(end_sign, true);
    }
    text += in_.substr(pos_);
    pos_ = in_.size();
    return 0;
  }

  /// Reads the delimiter that ends an expression or a tag.
  void close(std::string_view delimiter) {
    pos_ = begin_of(now());
    const char sign = sign_of(char_at(pos_));
    pos_ += sign != ' ';
    if (!in_.substr(pos_).starts_with(delimiter)) unexpected();
    pos_ += delimiter.size();
    skip_behind(sign, delimiter == "%}");
  }

  /// The name, number or sign that comes next; of a string its quote.
  std::string_view now() const { return word_behind(pos_); }
  bool at(std::string_view word) const { return now() == word; }
  bool at_name() const { return is_word(now()) && !is_digit(now()[0]); }
  bool at_integer() const { return is_word(now()) && is_digit(now()[0]); }
  bool at_string() const { return at("'") || at("\""); }
  /// Whether `word` is the one behind the next.
  bool before(std::string_view word) const { return word_behind(end_of(now())) == word; }

  std::string take() {
    const std::string_view word = now();
    pos_ = end_of(word);
    return std::string(word);
  }
  bool take(std::string_view word) {
    const bool there = at(word);
    if (there) take();
    return there;
  }
  void expect(std::string_view word) {
    if (!take(word)) unexpected();
  }
  std::string take_name() {
    if (!at_name()) unexpected();
    return take();
  }

  Value take_integer() {
    const std::string text = take();
    const bool is_float = char_at(pos_) == '.' && is_digit(char_at(pos_ + 1));
    const bool is_octal = text.size() > 1 && text[0] == '0';
    int64_t i = 0;
    const auto read = std::from_chars(text.data(), text.data() + text.size(), i);
    if (is_float || is_octal || read.ec != std::errc() || read.ptr != text.data() + text.size())
      refuse("the number '" + text.substr(0, 40) + "...'");
    return Value::integer(i);
  }

  std::string take_string() {
    std::string out;
    const char quote = take()[0];
    while (char_at(pos_) != quote) {
      if (pos_ >= in_.size()) syntax("a string is not closed");
      if (in_[pos_] == '\\') {
        take_escape(out);
      } else {
        out += in_[pos_++];
      }
    }
    ++pos_;
    return out;
  }

  [[noreturn]] void syntax(const std::string& why) const {
    const auto line = 1 + std::count(in_.begin(), in_.begin() + begin_of(now()), '\n');
    fail(Failure::kSyntax, why + " (line " + std::to_string(line) + ")");
  }
  [[noreturn]] void unexpected() const {
    syntax(now().empty() ? "unexpected end of template"
                         : "unexpected '" + std::string(now()) + "'");
  }

 private:
  static bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }
  static bool is_letter(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }
  static bool is_word(std::string_view word) { return !word.empty() && is_letter(word[0]); }
  static bool opens(char a, char b) { return a == '{' && (b == '{' || b == '%' || b == '#'); }
  /// What says how white space goes: '-', '+' or ' ' for neither.
  static char sign_of(char c) { return c == '-' || c == '+' ? c : ' '; }

  char char_at(size_t pos) const { return pos < in_.size() ? in_[pos] : '\0'; }
  size_t begin_of(std::string_view word) const {
    return static_cast<size_t>(word.data() - in_.data());
  }
  size_t end_of(std::string_view word) const { return begin_of(word) + word.size(); }

  std::string_view word_behind(size_t pos) const {
    constexpr std::string_view kSigns[] = {
        "//", "**", "==", "!=", ">=", "<=", "-}}", "-%}", "+%}", "%}"};
    while (std::isspace(static_cast<unsigned char>(char_at(pos)))) ++pos;
    const std::string_view rest = in_.substr(std::min(pos, in_.size()));
    for (const std::string_view sign : kSigns) {
      if (rest.starts_with(sign)) return rest.substr(0, sign.size());
    }
    const auto length = std::ranges::find_if_not(rest, is_letter) - rest.begin();
    return rest.substr(0, std::max<size_t>(1, static_cast<size_t>(length)));
  }

  /// The text before a delimiter, stripped as its sign and lstrip_blocks say.
  std::string_view text_before(size_t open, char sign, bool strips_line) const {
    const std::string_view text = in_.substr(pos_, open - pos_);
    if (sign == '-') return strip(text, Value(), Side::kRight);
    const size_t line_begin = text.rfind('\n') + 1;  // 0 when there is none
    const bool at_line_begin = line_begin > 0 || line_starting_;
    const bool blank = strip(text.substr(line_begin), Value(), Side::kLeft).empty();
    return sign != '+' && strips_line && at_line_begin && blank ? text.substr(0, line_begin) : text;
  }

  /// White space behind a delimiter, as its sign and trim_blocks say.
  void skip_behind(char sign, bool trims_newline) {
    const size_t begin = pos_;
    if (sign == '-') {
      pos_ = in_.size() - strip(in_.substr(pos_), Value(), Side::kLeft).size();
    } else if (trims_newline && sign != '+' && char_at(pos_) == '\n') {
      ++pos_;
    }
    line_starting_ = pos_ > begin && in_[pos_ - 1] == '\n';
  }

  /// As Python: an unknown escape stands for itself.
  void take_escape(std::string& out) {
    constexpr std::string_view kFrom = "ntr\\'\"abfv", kTo = "\n\t\r\\'\"\a\b\f\v";
    const char e = char_at(pos_ + 1);
    pos_ += 2;
    if (const size_t known = kFrom.find(e); known != std::string_view::npos) {
      out += kTo[known];
    } else if (std::string_view("uxUN01234567").find(e) != std::string_view::npos) {
      refuse("the string escape \\" + std::string(1, e));
    } else if (e != '\n') {
      out += '\\';
      --pos_;
    }
  }

  std::string source_;
  std::string_view in_;
  size_t pos_ = 0;
  bool line_starting_ = true;
};

}  // namespace bicached::jinja
