#include "http/answer_writer.h"

#include <chrono>

namespace bicached {

std::string dump_json(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

std::string data_event(const OrderedJson& json) { return "data: " + dump_json(json) + "\n\n"; }

std::string named_event(const std::string& name, const OrderedJson& json) {
  return "event: " + name + "\n" + data_event(json);
}

int64_t unix_time() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(now).count();
}

int total_completion_tokens(const std::vector<Choice>& choices) {
  int total = 0;
  for (const Choice& choice : choices) total += choice.completion_tokens();
  return total;
}

int64_t total_cached_tokens(const Job& job, const std::vector<Choice>& choices) {
  int64_t cached = 0;
  for (size_t i = 0; i < choices.size(); i += static_cast<size_t>(job.choices_per_prompt)) {
    cached += choices[i].stats().cached_tokens;
  }
  return cached;
}

std::unique_ptr<AnswerWriter> make_writer(const Job& job, const Tokenizer& tokenizer,
                                          const std::string& request_id) {
  switch (job.dialect) {
    case Dialect::kResponses: return make_responses_writer(job, request_id);
    case Dialect::kMessages: return make_messages_writer(job, request_id);
    case Dialect::kInfill: return make_infill_writer(job, tokenizer);
    case Dialect::kChat:
    case Dialect::kText: break;
  }
  return make_completions_writer(job, tokenizer, request_id);
}

}  // namespace bicached
