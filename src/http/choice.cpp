#include "http/choice.h"

namespace bicached {

Choice::Choice(const Tokenizer& tokenizer, const std::vector<std::string>& stops)
    : detokenizer_(tokenizer, true), scanner_(stops) {}

void Choice::release(std::string text, ChoiceDelta& delta) {
  released_bytes_ += text.size();
  delta.text += text;
  while (!waiting_.empty() && waiting_.front().text_begin < released_bytes_) {
    delta.tokens.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

ChoiceDelta Choice::accept(const GenerationUpdate& update) {
  ChoiceDelta delta;
  delta.text_begin = released_bytes_;
  if (finished()) return delta;
  stats_ = update.stats;
  for (const DecidedToken& token : update.tokens) {
    ++completion_tokens_;
    const std::string text = detokenizer_.push(token.token);
    waiting_.push_back({token, arrived_bytes_});
    arrived_bytes_ += text.size();
    release(scanner_.push(text), delta);
    if (!scanner_.stopped()) continue;
    waiting_.clear();
    finish_ = FinishReason::kStop;
    return delta;
  }
  if (update.finish == FinishReason::kNone) return delta;
  finish_ = update.finish;
  release(scanner_.push(detokenizer_.flush()), delta);
  if (scanner_.stopped()) {
    waiting_.clear();
    finish_ = FinishReason::kStop;
    return delta;
  }
  release(scanner_.flush(), delta);
  for (ChoiceToken& token : waiting_) delta.tokens.push_back(std::move(token));
  waiting_.clear();
  return delta;
}

}  // namespace bicached
