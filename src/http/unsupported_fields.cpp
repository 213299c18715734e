#include "http/unsupported_fields.h"

#include <algorithm>

#include "bicached/error.h"

namespace bicached {
namespace {

using nlohmann::json;

/// A field that is refused unless it is null, or with `empty_is_nothing` empty.
struct Refused {
  const char* name;
  const char* why;
  bool empty_is_nothing = true;
};

constexpr const char* kNoConstraints = "this server can't constrain the output; leave it out";

constexpr Refused kRefused[] = {
    // An empty schema is one too: of any JSON.
    {"guided_json", kNoConstraints, false},
    {"json_schema", kNoConstraints, false},
    {"guided_regex", kNoConstraints},
    {"guided_choice", kNoConstraints},
    {"guided_grammar", kNoConstraints},
    {"guided_patterns", kNoConstraints},
    {"grammar", kNoConstraints},
    {"regex", kNoConstraints},
    {"ebnf", kNoConstraints},
    {"structural_tag", kNoConstraints},
    {"logits_processors", kNoConstraints},
    {"prompt_logprobs",
     "log-probabilities of the prompt come with echo and logprobs of /v1/completions", false},
    {"chat_template", "the template is the model's own"},
    {"use_beam_search", "this server has no beam search"},
};

/// The tools of a request are not called, which every choice but a demanded call allows.
bool demands_call(const json& choice) {
  if (choice.is_null() || choice == "none" || choice == "auto") return false;
  if (!choice.is_object()) return true;
  // OpenAI's allowed_tools, in both of its forms; Anthropic's {"type": "auto"}.
  const json type = choice.value("type", json());
  if (type == "auto" || type == "none") return false;
  if (type != "allowed_tools") return true;
  const json inner = choice.value("allowed_tools", json());
  const json mode = choice.contains("mode") ? choice["mode"]
                    : inner.is_object()     ? inner.value("mode", json())
                                            : json();
  return !mode.is_null() && mode != "auto";
}

void read_tools(Fields& fields, NameLog& log) {
  constexpr const char* kPairs[][2] = {{"tools", "tool_choice"}, {"functions", "function_call"}};
  for (const auto& [list_name, choice_name] : kPairs) {
    const json* list = fields.find(list_name);
    const json* choice = fields.find(choice_name);
    if (list && !list->is_array()) throw_wrong_type(list_name, "a list", *list);
    refuse_unless(!choice || !demands_call(*choice), choice_name,
                  "this server calls no tools; allowed is \"none\" or \"auto\", and the answer is "
                  "text");
    if (list && !list->empty()) log.report({list_name}, "is answered in text: no tool is called");
  }
}

}  // namespace

bool is_nothing(const json& value) {
  return value.is_null() || value == false || value == "" ||
         ((value.is_array() || value.is_object()) && value.empty());
}

void refuse_unless(bool asks_for_nothing, const std::string& field, const std::string& why) {
  if (asks_for_nothing) return;
  throw Error(ErrorCode::kUnsupportedParameter, field + ": " + why, field);
}

void refuse_unsupported_fields(Fields& fields, NameLog& log) {
  const json nothing;
  const auto value = [&](const char* name) -> const json& {
    const json* found = fields.find(name);
    return found ? *found : nothing;
  };
  read_tools(fields, log);
  for (const Refused& refused : kRefused) {
    const json& given = value(refused.name);
    const bool fine = refused.empty_is_nothing ? is_nothing(given) : given.is_null();
    refuse_unless(fine, refused.name, refused.why);
  }
  const json& outputs = value("structured_outputs");
  refuse_unless(is_nothing(outputs) ||
                    (outputs.is_object() && std::all_of(outputs.begin(), outputs.end(),
                                                        [](const json& v) { return v.is_null(); })),
                "structured_outputs", kNoConstraints);
  const json& format = value("response_format");
  refuse_unless(format.is_null() || (format.is_object() && format.value("type", json()) == "text"),
                "response_format", "only {\"type\": \"text\"} is supported");
  const json& best_of = value("best_of");
  refuse_unless(best_of.is_null() || best_of == 0 || best_of == 1 || best_of == value("n"),
                "best_of", "only 1, or as many as n, is supported");
  const json& modalities = value("modalities");
  refuse_unless(is_nothing(modalities) || modalities == json::array({"text"}), "modalities",
                "only [\"text\"] is supported");
  if (fields.find("web_search_options")) {
    log.report({"web_search_options"}, "is answered without a search");
  }
  // `audio` says how an answer sounds that `modalities` would ask for.
  fields.ignore({"audio", "user", "metadata", "store", "service_tier", "parallel_tool_calls",
                 "prompt_cache_key", "safety_identifier", "reasoning_effort", "verbosity",
                 "prediction"});
}

}  // namespace bicached
