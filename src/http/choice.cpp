#include "http/choice.h"

namespace bicached {

Choice::Choice(const Tokenizer& tokenizer, const std::vector<std::string>& stops,
               const GenerateRequest& request)
    : detokenizer_(tokenizer, true),
      given_text_(tokenizer, true),
      scanner_(stops),
      generation_begin_(request.prompt_ids.size()),
      min_tokens_(request.decode.min_tokens) {
  bool in_gap = false;
  for (const TokenId token : request.given) {
    if (token < 0 && !in_gap) gaps_.emplace_back();
    in_gap = token < 0;
    gap_of_.push_back(in_gap ? static_cast<int>(gaps_.size()) - 1 : -1);
  }
}

void Choice::release(std::string text, ChoiceDelta& delta) {
  released_bytes_ += text.size();
  delta.text += text;
  if (gap_) *gap_ += text;
  while (!waiting_.empty() && waiting_.front().text_begin < released_bytes_) {
    delta.tokens.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

/// Everything of the text so far.
void Choice::flush(ChoiceDelta& delta) {
  release(scanner_.push(detokenizer_.flush(), may_stop()), delta);
  if (scanner_.stopped()) {
    waiting_.clear();
    return;
  }
  release(scanner_.flush(), delta);
  for (ChoiceToken& token : waiting_) delta.tokens.push_back(std::move(token));
  waiting_.clear();
}

/// A token between two gaps: no stop string reaches over it.
void Choice::take_given(const DecidedToken& token, ChoiceDelta& delta) {
  flush(delta);
  scanner_.restart();
  gap_ = nullptr;
  release(given_text_.push(token.token), delta);
  arrived_bytes_ = released_bytes_;
}

void Choice::take(const DecidedToken& token, ChoiceDelta& delta) {
  ++completion_tokens_;
  if (scanner_.stopped()) return;
  if (std::string rest = given_text_.flush(); !rest.empty()) {
    arrived_bytes_ += rest.size();
    release(std::move(rest), delta);
  }
  if (!gap_of_.empty()) {
    const size_t position = static_cast<size_t>(token.position) - generation_begin_;
    gap_ = &gaps_[static_cast<size_t>(gap_of_[position])];
  }
  const std::string text = detokenizer_.push(token.token);
  waiting_.push_back({token, arrived_bytes_});
  arrived_bytes_ += text.size();
  release(scanner_.push(text, may_stop()), delta);
  if (scanner_.stopped()) waiting_.clear();
}

ChoiceDelta Choice::accept(const GenerationUpdate& update) {
  ChoiceDelta delta;
  delta.text_begin = released_bytes_;
  if (finished()) return delta;
  stats_ = update.stats;
  for (const DecidedToken& token : update.tokens) {
    if (token.is_end) {
      end_ = token;
      continue;
    }
    token.is_given ? take_given(token, delta) : take(token, delta);
    if (stopped_early()) break;
  }
  if (!stopped_early() && update.finish != FinishReason::kNone) {
    finish_ = update.finish;
    flush(delta);
  }
  if (stopped_early()) {
    finish_ = FinishReason::kStop;
  } else if (finished() && end_) {
    delta.tokens.push_back({*end_, released_bytes_});
  }
  return delta;
}

}  // namespace bicached
