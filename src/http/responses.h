#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bicached/tokenizer.h"
#include "http/choice.h"
#include "http/job.h"

namespace bicached {

using OrderedJson = nlohmann::ordered_json;

/// Text for the wire: never throws on broken UTF-8 (it becomes U+FFFD).
std::string dump_json(const OrderedJson& json);

/// Builds the bodies of one answer, plain and streamed, in the job's dialect.
class ResponseWriter {
 public:
  /// Both outlive this. `id` as in OpenAI's: made of the request id.
  ResponseWriter(const Job& job, const Tokenizer& tokenizer, const std::string& request_id);

  /// The text that precedes choice `index` with `echo`, as a delta of tokens without numbers.
  std::string echo_text(size_t index) const;

  OrderedJson plain(const std::vector<Choice>& choices, const std::vector<ChoiceDelta>& wholes);

  OrderedJson role_chunk(size_t index);
  OrderedJson text_chunk(size_t index, const ChoiceDelta& delta);
  OrderedJson finish_chunk(size_t index, FinishReason reason);
  OrderedJson usage_chunk(const std::vector<Choice>& choices);
  OrderedJson denoise_event(const GenerationUpdate& update) const;

  int completion_tokens(const std::vector<Choice>& choices) const;

 private:
  OrderedJson head(const char* object) const;
  OrderedJson chunk(OrderedJson choice) const;
  OrderedJson usage(const std::vector<Choice>& choices) const;
  OrderedJson diffusion(const std::vector<Choice>& choices) const;
  OrderedJson logprobs(size_t index, const ChoiceDelta& delta);
  OrderedJson chat_logprobs(const ChoiceDelta& delta) const;
  OrderedJson text_logprobs(size_t index, const ChoiceDelta& delta);
  std::string display(TokenId token) const;

  const Job& job_;
  const Tokenizer& tokenizer_;
  std::string id_;
  int64_t created_;
  std::vector<int64_t> num_characters_;  // of each choice so far, for text_offset
  bool chat() const { return job_.dialect == Dialect::kChat; }
};

}  // namespace bicached
