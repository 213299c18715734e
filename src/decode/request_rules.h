#pragma once

#include <map>
#include <span>
#include <vector>

#include "bicached/denoiser.h"
#include "bicached/request.h"
#include "decode/canvas.h"

namespace bicached {

/// A decision of a forward.
struct Commit {
  int position = 0;
  TokenId token = 0;
  float probability = 0.0f;
  std::vector<TokenLogprob> top;  // when asked for
};

/// Tokens that a request never chooses, wherever: its answer to `ignore_eos` and `logits_eos_inf`.
std::vector<TokenId> never_chosen(const DecodeParams& decode, const ModelInfo& model);

/// What a request says of tokens: which end its text, which are not chosen and where, and what its
/// penalties count. A function of the request and its canvas alone. Engine thread only.
class RequestRules {
 public:
  /// Both outlive this.
  RequestRules(const GenerateRequest& request, const ModelInfo& model);

  bool is_end(TokenId token) const;
  /// A decided token of the text. An end token doesn't count: a canvas is filled up with them.
  void count(TokenId token);
  /// One that another takes the place of.
  void uncount(TokenId token);
  /// Before a forward: what may not stand at the positions that it may decide or revise.
  void look_at(const Canvas& canvas, std::span<const int> open);
  /// Fills in the row's rules. What it refers to stays until the next `look_at` or `count`.
  void apply(int position, LogitRow& row) const;
  /// Those of these decisions, of one forward, that complete no bad word: two of its tokens may
  /// have been chosen at once. The first one stays, since `look_at` has seen what it completes.
  std::vector<Commit> without_bad_words(std::vector<Commit> commits, const Canvas& canvas) const;

 private:
  bool completes_bad_word(const Canvas& canvas, std::span<const Commit> commits, int position,
                          TokenId token) const;

  const GenerateRequest& request_;
  std::vector<TokenId> ends_;        // the model's, then the request's
  std::vector<TokenId> never_;       // of LogitRow
  std::vector<TokenId> discounted_;  // of LogitRow
  std::vector<CountedToken> counted_;
  std::map<int, std::vector<TokenId>> never_here_;  // of LogitRow, by position
};

}  // namespace bicached
