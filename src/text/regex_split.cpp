#include "text/regex_split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/utf8.h"
#include "bicached/error.h"

namespace bicached {
namespace {

// `\s` written out: PCRE2's own has U+180E as well.
constexpr std::string_view kSpaces =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";

constexpr size_t kMaxPatternBytes = 16384;
constexpr size_t kMaxJitStackBytes = 16 << 20;

[[noreturn]] void refuse(std::string_view pattern, const std::string& why) {
  throw Error(ErrorCode::kInvalidModel, "tokenizer regex \"" + std::string(pattern.substr(0, 200)) +
                                            "\" can't be used: " + why);
}

/// Oniguruma (Ruby syntax) to PCRE2: `\s`, `\S`, and `{n,m}+`, which repeats there and is
/// possessive here. Constructs with other meanings are refused.
class PatternTranslator {
 public:
  explicit PatternTranslator(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (pos_ < in_.size()) step();
    return std::move(out_);
  }

 private:
  void step() {
    const char c = in_[pos_];
    if (c == '\\') {
      atom_ = out_.size();
      escape();
    } else if (c == '[') {
      atom_ = out_.size();
      char_class();
    } else if (c == '(') {
      group_starts_.push_back(out_.size());
      open_group();
    } else if (c == ')') {
      if (!group_starts_.empty()) {
        atom_ = group_starts_.back();
        group_starts_.pop_back();
      }
      out_ += in_[pos_++];
    } else if (c == '{') {
      interval();
    } else {
      if (c != '*' && c != '+' && c != '?') atom_ = out_.size();
      // A multi-byte character is one atom.
      do {
        out_ += in_[pos_++];
      } while (pos_ < in_.size() && continues_character(in_[pos_]));
    }
  }

  void open_group() {
    out_ += in_[pos_++];
    if (pos_ >= in_.size() || in_[pos_] != '?') return;
    for (size_t i = pos_ + 1;
         i < in_.size() && (std::isalpha(static_cast<unsigned char>(in_[i])) || in_[i] == '-');
         ++i) {
      if (in_[i] != 'i' && in_[i] != '-') {
        refuse(in_, std::string("option or group (?") + in_[i] + " is not supported");
      }
    }
    out_ += in_[pos_++];
  }

  void escape() {
    if (pos_ + 1 >= in_.size()) refuse(in_, "it ends in a backslash");
    const char e = in_[pos_ + 1];
    if (e == 's' || e == 'S') {
      out_ += e == 's' ? "[" : "[^";
      out_ += kSpaces;
      out_ += ']';
      pos_ += 2;
      return;
    }
    copy_escape();
  }

  void copy_escape() {
    const char e = in_[pos_ + 1];
    constexpr std::string_view kSame = "dDwWbBpPrntfvuxeazA";
    if (std::isalnum(static_cast<unsigned char>(e)) && kSame.find(e) == std::string_view::npos) {
      refuse(in_, std::string("escape \\") + e + " is not supported");
    }
    out_ += in_[pos_++];
    out_ += in_[pos_++];
    if ((e == 'p' || e == 'P' || e == 'x') && pos_ < in_.size() && in_[pos_] == '{') {
      while (pos_ < in_.size() && in_[pos_] != '}') out_ += in_[pos_++];
      if (pos_ < in_.size()) out_ += in_[pos_++];
    }
  }

  void char_class() {
    out_ += in_[pos_++];
    if (pos_ < in_.size() && in_[pos_] == '^') out_ += in_[pos_++];
    while (pos_ < in_.size() && in_[pos_] != ']') {
      if (in_[pos_] == '\\' && pos_ + 1 < in_.size()) {
        if (in_[pos_ + 1] == 's') {
          out_ += kSpaces;
          pos_ += 2;
        } else if (in_[pos_ + 1] == 'S') {
          refuse(in_, "\\S inside [...] is not supported");
        } else {
          copy_escape();
        }
      } else if (in_[pos_] == '[' || in_.substr(pos_, 2) == "&&") {
        refuse(in_, "sets of sets ([..[..]..] and &&) are not supported");
      } else {
        out_ += in_[pos_++];
      }
    }
    if (pos_ < in_.size()) out_ += in_[pos_++];
  }

  void interval() {
    const size_t close = in_.find('}', pos_);
    if (close == std::string_view::npos) refuse(in_, "a { is not closed");
    const std::string body(in_.substr(pos_, close + 1 - pos_));
    pos_ = close + 1;
    out_ += body;
    if (pos_ < in_.size() && in_[pos_] == '+') {
      out_.insert(atom_, "(?:");
      out_ += ")+";
      ++pos_;
    }
  }

  std::string_view in_;
  std::string out_;
  size_t pos_ = 0;
  size_t atom_ = 0;  // where the last atom begins in out_
  std::vector<size_t> group_starts_;
};

struct MatchState {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;
  ~MatchState() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

/// Looks for matches in as little of the text as will do: a match that hits the end of its window
/// is looked for in one of twice the length. What windows hold together is bounded, since a pattern
/// that looks far ahead at every character takes time in the square of the text.
class Matcher {
 public:
  Matcher(const pcre2_code* code, std::string_view text) : code_(code), text_(text) {
    state_.data = pcre2_match_data_create(1, nullptr);
    state_.context = pcre2_match_context_create(nullptr);
    state_.stack = pcre2_jit_stack_create(64 << 10, kMaxJitStackBytes, nullptr);
    if (!state_.data || !state_.context || !state_.stack) {
      throw Error(ErrorCode::kOutOfMemory, "no memory for splitting a text");
    }
    pcre2_jit_stack_assign(state_.context, nullptr, state_.stack);
    // Backtracking once over the text is normal (spaces before a newline); much more is not.
    pcre2_set_match_limit(state_.context, static_cast<uint32_t>(std::min<size_t>(
                                              text.size() * 8 + 100000, 1u << 31)));
    pcre2_set_heap_limit(state_.context, 256 << 10);  // KiB
  }

  /// Begin and end of the first match from `start` on. Nothing: there is none.
  std::optional<std::pair<size_t, size_t>> find(size_t start) {
    for (size_t length = kFirstWindow;; length *= 2) {
      const size_t end = window_end(start, length);
      const bool is_whole = end == text_.size();
      const int found = match(start, end, is_whole);
      if (found > 0) {
        const PCRE2_SIZE* span = pcre2_get_ovector_pointer(state_.data);
        return std::pair<size_t, size_t>(span[0], span[1]);
      }
      if (is_whole) return std::nullopt;
    }
  }

 private:
  static constexpr size_t kFirstWindow = 256;
  /// Legal texts stay below a few times their length; 256 MiB take some tenths of a second.
  static constexpr size_t kLeastBudget = size_t{256} << 20, kBudgetPerByte = 16;

  size_t window_end(size_t start, size_t length) const {
    if (length >= text_.size() - start) return text_.size();
    size_t end = start + length;
    while (end < text_.size() && continues_character(text_[end])) ++end;
    return end;
  }

  /// Over 0: found; else there is none in this window, or one may go on behind it.
  int match(size_t start, size_t end, bool is_whole) {
    if (end - start > kFirstWindow) work_ += end - start;
    if (work_ > kLeastBudget + kBudgetPerByte * text_.size()) refuse_text("it takes too long");
    // The text was checked once; checking it again at every match would be quadratic.
    const int found = pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text_.data()), end, start,
                                  PCRE2_NO_UTF_CHECK | (is_whole ? 0 : PCRE2_PARTIAL_HARD),
                                  state_.data, state_.context);
    if (found < 0 && found != PCRE2_ERROR_NOMATCH && found != PCRE2_ERROR_PARTIAL) {
      refuse_text("PCRE2 error " + std::to_string(found));
    }
    return found;
  }

  [[noreturn]] static void refuse_text(const std::string& why) {
    throw Error(ErrorCode::kInvalidRequest,
                "the text can't be split by the model's regex within its limits (" + why + ")");
  }

  const pcre2_code* code_;
  const std::string_view text_;
  MatchState state_;
  size_t work_ = 0;  // bytes of windows, but for the first ones
};

}  // namespace

struct RegexSplit::Impl {
  pcre2_code* code = nullptr;
  ~Impl() { pcre2_code_free(code); }
};

RegexSplit::RegexSplit(const std::string& pattern) : impl_(std::make_unique<Impl>()) {
  if (pattern.size() > kMaxPatternBytes || !is_valid_utf8(pattern)) {
    refuse(pattern,
           "it must be valid UTF-8 of at most " + std::to_string(kMaxPatternBytes) + " bytes");
  }
  const std::string translated = PatternTranslator(pattern).run();
  int error = 0;
  PCRE2_SIZE offset = 0;
  impl_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, nullptr);
  if (!impl_->code) {
    PCRE2_UCHAR message[200] = {};
    pcre2_get_error_message(error, message, sizeof message);
    refuse(pattern, reinterpret_cast<const char*>(message));
  }
  // Without JIT it is only slower.
  pcre2_jit_compile(impl_->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
}

RegexSplit::~RegexSplit() = default;
RegexSplit::RegexSplit(RegexSplit&&) noexcept = default;

void RegexSplit::split(std::string_view text, std::vector<std::string_view>& pieces) const {
  Matcher matcher(impl_->code, text);
  size_t done = 0;   // end of the last piece
  size_t start = 0;  // where the next match is looked for
  while (start < text.size()) {
    const auto span = matcher.find(start);
    if (!span) break;
    const auto [begin, end] = *span;
    if (end <= begin) {  // an empty match splits nothing; go on one character later
      start = begin;
      if (start < text.size()) next_code_point(text, start);
      continue;
    }
    if (begin > done) pieces.push_back(text.substr(done, begin - done));
    pieces.push_back(text.substr(begin, end - begin));
    start = done = end;
  }
  if (done < text.size()) pieces.push_back(text.substr(done));
}

}  // namespace bicached
