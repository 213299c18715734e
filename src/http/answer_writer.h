#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bicached/tokenizer.h"
#include "http/choice.h"
#include "http/job.h"

namespace bicached {

using OrderedJson = nlohmann::ordered_json;

/// Text for the wire: never throws on broken UTF-8 (it becomes U+FFFD).
std::string dump_json(const OrderedJson& json);

std::string data_event(const OrderedJson& json);
std::string named_event(const std::string& name, const OrderedJson& json);

/// Seconds since 1970.
int64_t unix_time();

/// The form of an answer, plain and streamed. One file a dialect. One thread.
///
/// A stream is begin() of every choice, text() and finish() of each as they come, end(); or
/// failure() instead of what is left. Each gives whole events.
class AnswerWriter {
 public:
  virtual ~AnswerWriter() = default;

  /// The body of a plain answer.
  virtual std::string plain(const std::vector<Choice>& choices,
                            const std::vector<ChoiceDelta>& wholes) = 0;

  virtual std::string begin(size_t index) = 0;
  virtual std::string text(size_t index, const ChoiceDelta& delta) = 0;
  virtual std::string finish(size_t index, const Choice& choice) = 0;
  virtual std::string end(const std::vector<Choice>& choices) = 0;
  /// `error` as in a plain answer of OpenAI's form.
  virtual std::string failure(const OrderedJson& error) { return data_event(error); }
  /// The canvas as it stands, where the dialect shows it.
  virtual std::string canvas(const GenerationUpdate&) { return ""; }
};

/// All outlive the writer.
std::unique_ptr<AnswerWriter> make_writer(const Job& job, const Tokenizer& tokenizer,
                                          const std::string& request_id);

std::unique_ptr<AnswerWriter> make_completions_writer(const Job& job, const Tokenizer& tokenizer,
                                                      const std::string& request_id);
std::unique_ptr<AnswerWriter> make_responses_writer(const Job& job, const std::string& request_id);
std::unique_ptr<AnswerWriter> make_messages_writer(const Job& job, const std::string& request_id);
std::unique_ptr<AnswerWriter> make_infill_writer(const Job& job, const Tokenizer& tokenizer);

int total_completion_tokens(const std::vector<Choice>& choices);
/// Prompt tokens taken from a shared prefix: of each prompt once, however many choices it has.
int64_t total_cached_tokens(const Job& job, const std::vector<Choice>& choices);

}  // namespace bicached
