#pragma once

#include <vector>

#include "bicached/request.h"

namespace bicached {

/// One sequence being filled: prompt, then G generation positions, then an optional suffix.
///
/// Masked positions are known by index, never by token value: a prompt may contain the mask token
/// and a model may predict it. The length changes only by `extend`. Engine thread only.
class Canvas {
 public:
  Canvas(const GenerateRequest& request, TokenId mask_token);

  int length() const { return static_cast<int>(tokens_.size()); }
  int generation_begin() const { return generation_begin_; }
  int generation_end() const { return generation_end_; }
  int num_masked() const { return num_masked_; }
  int num_masked_in(int begin, int end) const;

  const std::vector<TokenId>& tokens() const { return tokens_; }
  TokenId token(int position) const { return tokens_[static_cast<size_t>(position)]; }
  bool is_masked(int position) const { return masked_[static_cast<size_t>(position)]; }
  /// It came with the request: prompt, suffix, and what stands between gaps.
  bool is_given(int position) const { return given_[static_cast<size_t>(position)]; }

  /// Adds masked generation positions at the end; there is no suffix.
  void extend(int num_positions);

  /// Decides a masked position; never the mask token. Throws kInternal on anything else.
  void commit(int position, TokenId token);
  /// Gives a decided position another token. Throws kInternal as `commit`.
  void revise(int position, TokenId token);
  /// First masked position, generation_end() when there is none.
  int first_masked() const;

 private:
  void set(int position, TokenId token, bool was_masked);

  std::vector<TokenId> tokens_;
  std::vector<bool> masked_;
  std::vector<bool> given_;
  TokenId mask_token_;
  int generation_begin_;
  int generation_end_;
  int num_masked_;
};

}  // namespace bicached
