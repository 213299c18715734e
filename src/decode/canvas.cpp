#include "decode/canvas.h"

#include <algorithm>

#include "bicached/error.h"

namespace bicached {

Canvas::Canvas(const GenerateRequest& request, TokenId mask_token)
    : tokens_(request.prompt_ids),
      mask_token_(mask_token),
      generation_begin_(static_cast<int>(request.prompt_ids.size())),
      generation_end_(generation_begin_ + request.gen_length) {
  tokens_.resize(static_cast<size_t>(generation_end_), mask_token);
  tokens_.insert(tokens_.end(), request.suffix_ids.begin(), request.suffix_ids.end());
  masked_.assign(tokens_.size(), false);
  std::fill(masked_.begin() + generation_begin_, masked_.begin() + generation_end_, true);
  for (size_t i = 0; i < request.given.size(); ++i) {
    if (request.given[i] < 0) continue;
    const size_t position = static_cast<size_t>(generation_begin_) + i;
    tokens_[position] = request.given[i];
    masked_[position] = false;
  }
  given_ = masked_;
  given_.flip();
  num_masked_ = num_masked_in(generation_begin_, generation_end_);
}

void Canvas::extend(int num_positions) {
  generation_end_ += num_positions;
  num_masked_ += num_positions;
  const auto length = static_cast<size_t>(generation_end_);
  tokens_.resize(length, mask_token_);
  masked_.resize(length, true);
  given_.resize(length, false);
}

int Canvas::num_masked_in(int begin, int end) const {
  return static_cast<int>(std::count(masked_.begin() + begin, masked_.begin() + end, true));
}

void Canvas::commit(int position, TokenId token) {
  set(position, token, true);
  masked_[static_cast<size_t>(position)] = false;
  --num_masked_;
}

void Canvas::revise(int position, TokenId token) { set(position, token, false); }

void Canvas::set(int position, TokenId token, bool was_masked) {
  if (position < generation_begin_ || position >= generation_end_ ||
      is_masked(position) != was_masked || is_given(position) || token == mask_token_) {
    throw Error(ErrorCode::kInternal, "commit of token " + std::to_string(token) + " at position " +
                                          std::to_string(position) + ": not a " +
                                          (was_masked ? "masked" : "decided") +
                                          " position, or the mask token");
  }
  tokens_[static_cast<size_t>(position)] = token;
}

int Canvas::first_masked() const {
  const auto begin = masked_.begin() + generation_begin_, end = masked_.begin() + generation_end_;
  return static_cast<int>(std::find(begin, end, true) - masked_.begin());
}

}  // namespace bicached
