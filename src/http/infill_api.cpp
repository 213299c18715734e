// llama.cpp's POST /infill: what stands between a prefix and a suffix.
#include "bicached/error.h"
#include "http/answer_writer.h"
#include "http/job_fields.h"

namespace bicached {
namespace {

using nlohmann::json;

constexpr LengthRules kRules{.prompt = "input_prefix"};

/// `input_extra`: texts of other files, in front.
std::string read_extra(Fields& fields) {
  const json* list = fields.find("input_extra");
  if (!list) return "";
  if (!list->is_array()) throw_wrong_type("input_extra", "a list of files", *list);
  std::string text;
  for (size_t i = 0; i < list->size(); ++i) {
    Fields file((*list)[i], "input_extra[" + std::to_string(i) + "]");
    file.require("text");
    const std::string name = file.text("filename").value_or("");
    text += (name.empty() ? "" : name + "\n") + *file.text("text") + "\n";
  }
  return text;
}

class InfillWriter final : public AnswerWriter {
 public:
  InfillWriter(const Job& job, const Tokenizer& tokenizer) : job_(job), tokenizer_(tokenizer) {}

  std::string plain(const std::vector<Choice>& choices,
                    const std::vector<ChoiceDelta>& wholes) override {
    if (choices.size() == 1) return dump_json(last(0, choices[0], wholes[0].text));
    OrderedJson list = OrderedJson::array();
    for (size_t i = 0; i < choices.size(); ++i) {
      list.push_back(last(i, choices[i], wholes[i].text));
    }
    return dump_json(list);
  }

  std::string begin(size_t) override { return ""; }
  std::string text(size_t index, const ChoiceDelta& delta) override {
    if (delta.text.empty()) return "";
    OrderedJson body;
    body["index"] = index;
    body["content"] = delta.text;
    body["tokens"] = OrderedJson::array();
    for (const ChoiceToken& token : delta.tokens) body["tokens"].push_back(token.token.token);
    body["stop"] = false;
    return data_event(body);
  }
  std::string finish(size_t index, const Choice& choice) override {
    return data_event(last(index, choice, ""));
  }
  std::string end(const std::vector<Choice>&) override { return ""; }

 private:
  OrderedJson last(size_t index, const Choice& choice, const std::string& text) const {
    const GenerateRequest& request = job_.canvases[index];
    const std::string& stop = choice.stop_string();
    OrderedJson body;
    body["index"] = index;
    body["content"] = text;
    body["tokens"] = OrderedJson::array();
    body["stop"] = true;
    body["model"] = job_.model;
    body["tokens_predicted"] = choice.completion_tokens();
    body["tokens_evaluated"] = request.prompt_ids.size() + request.suffix_ids.size();
    body["prompt"] = tokenizer_.decode(request.prompt_ids, false);
    body["has_new_line"] = text.find('\n') != std::string::npos;
    body["truncated"] = false;
    body["stop_type"] = choice.finish() == FinishReason::kLength ? "limit"
                        : stop.empty()                           ? "eos"
                                                                 : "word";
    body["stopping_word"] = stop;
    body["tokens_cached"] = choice.stats().cached_tokens;
    return body;
  }

  const Job& job_;
  const Tokenizer& tokenizer_;
};

}  // namespace

std::unique_ptr<AnswerWriter> make_infill_writer(const Job& job, const Tokenizer& tokenizer) {
  return std::make_unique<InfillWriter>(job, tokenizer);
}

Job parse_infill_request(const std::string& body, const CodecContext& context) {
  const json parsed = parse_body(body);
  Fields fields(parsed);
  Job job;
  job.dialect = Dialect::kInfill;
  CommonFields common = read_shared_fields(fields, context, job);
  read_length(fields, "max_tokens", common.length);
  read_length(fields, "n_predict", common.length);
  job.stops = read_texts(fields, "stop", kMaxStops);
  fields.require("input_prefix");
  fields.require("input_suffix");
  // A file's own text is letters: no special tokens are looked for.
  const Tokenizer& tokenizer = *context.backend.tokenizer;
  const std::string before =
      read_extra(fields) + *fields.text("input_prefix") + fields.text("prompt").value_or("");
  const std::string after = *fields.text("input_suffix");
  check_num_canvases(1, context, job, "n");
  finish_reading(fields, context);
  const Prompt prompt = raw_prompt(tokenizer.add_special(tokenizer.encode(before, false)),
                                   tokenizer.encode(after, false), common, context.backend);
  add_canvases(prompt, common, kRules, context, job);
  return job;
}

}  // namespace bicached
