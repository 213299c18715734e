#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace bicached {

/// A pre-tokenizer's split regex (behavior Isolated): matches and what lies between them are
/// pieces.
///
/// The pattern is Oniguruma's as the reference compiles it; what means something else to PCRE2 is
/// rewritten or refused. Immutable, any thread. Matching keeps its backtracking off the thread's
/// stack and is bounded: kInvalidRequest when a text runs over the bound.
class RegexSplit {
 public:
  /// Throws kInvalidModel with the pattern and what is wrong with it.
  explicit RegexSplit(const std::string& pattern);
  ~RegexSplit();
  RegexSplit(RegexSplit&&) noexcept;

  /// Appends the pieces of `text` (valid UTF-8) in order; together they are the text.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bicached
