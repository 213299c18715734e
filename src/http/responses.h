#pragma once

#include <string>
#include <vector>

#include "http/answer_writer.h"

namespace bicached {

/// OpenAI's chat completions and raw completions.
class ResponseWriter final : public AnswerWriter {
 public:
  /// Both outlive this. `id` as in OpenAI's: made of the request id.
  ResponseWriter(const Job& job, const Tokenizer& tokenizer, const std::string& request_id);

  std::string plain(const std::vector<Choice>& choices,
                    const std::vector<ChoiceDelta>& wholes) override;

  std::string begin(size_t index) override;
  std::string text(size_t index, const ChoiceDelta& delta) override;
  std::string finish(size_t index, const Choice& choice) override;
  std::string end(const std::vector<Choice>& choices) override;
  std::string canvas(const GenerationUpdate& update) override;

 private:
  OrderedJson head(const char* object) const;
  std::string chunk(OrderedJson choice) const;
  OrderedJson usage_chunk(const std::vector<Choice>& choices) const;
  OrderedJson usage(const std::vector<Choice>& choices) const;
  OrderedJson diffusion(const std::vector<Choice>& choices) const;
  OrderedJson logprobs(size_t index, const ChoiceDelta& delta);
  OrderedJson chat_logprobs(const ChoiceDelta& delta) const;
  OrderedJson text_logprobs(size_t index, const ChoiceDelta& delta);
  /// What precedes choice `index` with `echo`: the prompt, with its tokens where they have scores.
  ChoiceDelta echo(size_t index) const;
  std::string display(TokenId token) const;

  const Job& job_;
  const Tokenizer& tokenizer_;
  std::string id_;
  int64_t created_;
  std::vector<size_t> num_characters_;  // of each choice so far, for text_offset
  std::vector<char> has_logprobs_;      // of each choice, whether a chunk had some
  bool chat() const { return job_.dialect == Dialect::kChat; }
};

}  // namespace bicached
