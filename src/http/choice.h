#pragma once

#include <deque>
#include <string>
#include <vector>

#include "bicached/request.h"
#include "bicached/tokenizer.h"
#include "http/stop_scanner.h"

namespace bicached {

/// A token of an answer, with where its text begins.
struct ChoiceToken {
  DecidedToken token;
  size_t text_begin = 0;  // bytes from the start of the answer
};

/// What may be told to the client now.
struct ChoiceDelta {
  size_t text_begin = 0;  // of `text`, bytes from the start of the answer
  std::string text;
  std::vector<ChoiceToken> tokens;  // those whose text begins in what was released
};

/// Turns the tokens of one canvas into text: whole characters, cut before a stop string. Plain and
/// streamed answers both come from here, so they are the same. One thread.
class Choice {
 public:
  Choice(const Tokenizer& tokenizer, const std::vector<std::string>& stops);

  /// Takes what the engine decided; releases what can no longer change.
  ChoiceDelta accept(const GenerationUpdate& update);

  /// kStop as soon as a stop string is complete, else as the engine says.
  FinishReason finish() const { return finish_; }
  bool finished() const { return finish_ != FinishReason::kNone; }
  /// A stop string ended it, so the engine need not go on.
  bool stopped_early() const { return scanner_.stopped(); }
  /// Tokens that were taken: of a stop string too, as they were generated.
  int completion_tokens() const { return completion_tokens_; }
  const GenerationStats& stats() const { return stats_; }

 private:
  void release(std::string text, ChoiceDelta& delta);

  Detokenizer detokenizer_;
  StopScanner scanner_;
  std::deque<ChoiceToken> waiting_;  // tokens whose text is not released yet
  size_t arrived_bytes_ = 0;
  size_t released_bytes_ = 0;
  int completion_tokens_ = 0;
  GenerationStats stats_;
  FinishReason finish_ = FinishReason::kNone;
};

}  // namespace bicached
