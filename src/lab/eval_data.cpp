#include "lab/eval_data.h"

#include <set>
#include <string_view>

#include "app/flag_values.h"
#include "base/json_file.h"
#include "base/text_distance.h"
#include "bicached/error.h"
#include "config/decode_defaults.h"
#include "config/json_fields.h"
#include "config/limits.h"
#include "text/chat_prompt.h"

namespace bicached {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 30;
constexpr JsonLimits kLineLimits{16 << 20, 16};

std::string read_id(Fields& fields) {
  const nlohmann::json* id = fields.find("id");
  if (!id) return "";
  if (id->is_string()) return id->get<std::string>();
  if (id->is_number_integer()) return id->dump();
  throw_wrong_type("id", "a string or an integer", *id);
}

EvalQuestion read_question(const nlohmann::json& json, EvalAnswers answers) {
  if (!json.is_object()) throw_wrong_type("the line", "an object", json);
  Fields fields(json);
  EvalQuestion question;
  question.id = read_id(fields);
  question.family = fields.text("family").value_or(kNoFamily);
  question.gen_length = fields.limited_integer("gen_length", "max_tokens").value_or(0);
  question.messages = read_messages(fields);
  if (answers == EvalAnswers::kRequired) fields.require("answer");
  question.answer = fields.text("answer").value_or("");
  return question;
}

void check_families(const std::vector<std::string>& wanted, const std::set<std::string>& known,
                    const std::string& flag, const std::string& path) {
  const std::vector<std::string> names(known.begin(), known.end());
  for (const std::string& family : wanted) {
    if (known.contains(family)) continue;
    std::string message =
        flag + " has '" + family + "', but " + path + " has only the families " + joined(names);
    const std::string near = nearest_name(family, names);
    if (!near.empty()) message += "; did you mean " + near + "?";
    throw Error(ErrorCode::kInvalidSettings, message, flag);
  }
}

}  // namespace

std::vector<EvalQuestion> read_eval_data(const std::string& path, EvalAnswers answers) {
  constexpr ErrorCode kCode = ErrorCode::kInvalidSettings;
  const std::string text = read_text_file(path, kMaxFileBytes, kCode);
  std::vector<EvalQuestion> questions;
  int number = 0;
  for (const std::string_view line : split_at(text, '\n')) {
    ++number;
    if (trimmed(line).empty()) continue;
    const std::string where = path + ":" + std::to_string(number);
    const nlohmann::json json = parse_json_text(line, where, kCode, kLineLimits);
    try {
      questions.push_back(read_question(json, answers));
    } catch (const Error& error) {
      throw Error(
          kCode,
          where + ": " + error.what() +
              " (a line is like {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}]" +
              (answers == EvalAnswers::kRequired ? ", \"answer\": \"...\"})" : "})"),
          error.param());
    }
    questions.back().line = number;
  }
  if (questions.empty()) {
    throw Error(kCode, path + " has no questions; one JSON object a line is expected", "--data");
  }
  return questions;
}

EncodedChat encode_question(const std::vector<ChatMessage>& messages, const TextTools& text,
                            const std::string& where) {
  try {
    return encode_messages(messages, {}, text.chat_template.get(), *text.tokenizer);
  } catch (const Error& error) {
    throw Error(ErrorCode::kInvalidSettings, where + ": messages: " + error.what(), "messages");
  }
}

GenerateRequest question_request(const EncodedChat& chat, const DecodeSettings& defaults,
                                 int gen_length, const std::string& id) {
  GenerateRequest request = make_request(defaults, gen_length);
  request.id = id;
  request.prompt_ids = chat.ids;
  request.prefix_boundaries = chat.prefix_lengths;
  check_params(request.decode, request.sampling, gen_length, ErrorCode::kInvalidSettings);
  return request;
}

std::vector<EvalQuestion> select_questions(std::vector<EvalQuestion> questions,
                                           const EvalSelection& selection,
                                           const std::string& path) {
  std::set<std::string> known;
  for (const EvalQuestion& question : questions) known.insert(question.family);
  check_families(selection.families, known, "--families", path);
  check_families(selection.without_families, known, "--without-families", path);
  std::erase_if(questions, [&](const EvalQuestion& question) {
    return (!selection.families.empty() && !contains(selection.families, question.family)) ||
           contains(selection.without_families, question.family);
  });
  if (questions.empty()) {
    throw Error(ErrorCode::kInvalidSettings,
                "--families and --without-families leave no question of " + path, "--families");
  }
  if (selection.limit > 0 && questions.size() > static_cast<size_t>(selection.limit)) {
    questions.resize(static_cast<size_t>(selection.limit));
  }
  return questions;
}

}  // namespace bicached
