#pragma once

#include <deque>
#include <optional>
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
///
/// Where a request has several gaps the text runs from the first to the last one, with what stands
/// between them; a stop string ends its gap.
class Choice {
 public:
  /// Of `request` counts what is given between gaps, and `min_tokens`: in the text of so many
  /// tokens no stop string ends (vLLM's definition).
  Choice(const Tokenizer& tokenizer, const std::vector<std::string>& stops,
         const GenerateRequest& request = {});

  /// Takes what the engine decided; releases what can no longer change.
  ChoiceDelta accept(const GenerationUpdate& update);

  /// kStop as soon as a stop string is complete, else as the engine says.
  FinishReason finish() const { return finish_; }
  bool finished() const { return finish_ != FinishReason::kNone; }
  /// A stop string ended it, so the engine need not go on.
  bool stopped_early() const { return scanner_.stopped() && gap_of_.empty(); }
  /// The stop string that ended it; empty: none did.
  const std::string& stop_string() const { return scanner_.found(); }
  /// Tokens that were taken: of a stop string too, as they were generated.
  int completion_tokens() const { return completion_tokens_; }
  const GenerationStats& stats() const { return stats_; }
  /// The text of each gap; empty where the prompt has none.
  const std::vector<std::string>& gaps() const { return gaps_; }

 private:
  void release(std::string text, ChoiceDelta& delta);
  bool may_stop() const { return completion_tokens_ > min_tokens_; }
  void take(const DecidedToken& token, ChoiceDelta& delta);
  void flush(ChoiceDelta& delta);
  void take_given(const DecidedToken& token, ChoiceDelta& delta);

  Detokenizer detokenizer_;
  Detokenizer given_text_;  // its characters don't go on in a gap
  StopScanner scanner_;
  std::vector<int> gap_of_;  // by generation position; -1: given. Empty: no gaps
  const size_t generation_begin_;
  const int min_tokens_;
  std::vector<std::string> gaps_;
  std::string* gap_ = nullptr;       // that text is released to
  std::deque<ChoiceToken> waiting_;  // tokens whose text is not released yet
  std::optional<DecidedToken> end_;  // the token that ended the text, if it is asked for
  size_t arrived_bytes_ = 0;
  size_t released_bytes_ = 0;
  int completion_tokens_ = 0;
  GenerationStats stats_;
  FinishReason finish_ = FinishReason::kNone;
};

}  // namespace bicached
