#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/commands.h"
#include "app/flag_values.h"
#include "app/model_folder.h"
#include "base/log.h"
#include "bicached/engine.h"
#include "bicached/load.h"
#include "config/decode_defaults.h"
#include "config/limits.h"

namespace bicached {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct GenerateOptions {
  std::optional<std::string> prompt;  // raw text; "-" = standard input
  std::optional<std::string> chat;    // a user message; "-" = standard input
  std::optional<std::string> tokens;  // raw prompt as ids: "1,2,3"
  std::string system;                 // system message before `chat`
  std::string suffix;                 // text after the masks
  std::string seed = "0";
  std::optional<std::string> top_p, top_k;  // nothing: the model's
  bool ignore_eos = false;
  bool json = false;
};

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

std::string read_input(const std::string& text) {
  if (text != "-") return text;
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

std::vector<TokenId> parse_ids(const std::string& text, int vocab_size) {
  std::vector<TokenId> ids;
  for (const std::string_view part : split_at(text, ',')) {
    const TokenId id = parse_number<TokenId>("--tokens", std::string(part));
    if (id < 0 || id >= vocab_size) {
      throw Error(ErrorCode::kInvalidSettings, "--tokens: " + std::to_string(id) +
                                                   " is not an id of the vocabulary, 0 to " +
                                                   std::to_string(vocab_size - 1));
    }
    ids.push_back(id);
  }
  return ids;
}

std::vector<TokenId> prompt_ids(const GenerateOptions& options, const TextTools& text,
                                const ModelInfo& model) {
  if (options.prompt.has_value() + options.chat.has_value() + options.tokens.has_value() != 1) {
    throw Error(ErrorCode::kInvalidSettings, "give one of --prompt, --chat and --tokens");
  }
  if (options.tokens) return parse_ids(*options.tokens, model.vocab_size);
  if (options.prompt) {
    return text.tokenizer->add_special(text.tokenizer->encode(read_input(*options.prompt), true));
  }
  if (!text.chat_template) {
    throw Error(ErrorCode::kInvalidModel, "the model has no chat template; use --prompt");
  }
  std::vector<ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", read_input(*options.chat)});
  return encode_chat(*text.chat_template, *text.tokenizer, messages, true).ids;
}

GenerateRequest make_request(const GenerateOptions& options, const DecodeSettings& defaults) {
  GenerateRequest request = make_request(defaults, defaults.max_tokens);
  request.id = "generate";
  request.wants_canvas = options.json;
  request.decode.ignore_eos = options.ignore_eos;
  SamplingParams& sampling = request.sampling;
  if (options.top_p) sampling.top_p = parse_number<float>("--top-p", *options.top_p);
  if (options.top_k) sampling.top_k = parse_number<int>("--top-k", *options.top_k);
  sampling.seed = parse_number<uint64_t>("--seed", options.seed);
  check_params(request.decode, sampling, request.gen_length, ErrorCode::kInvalidSettings);
  return request;
}

/// What one forward decided: positions that were masked in `before` and are not in `after`.
Json commits_between(const std::vector<TokenId>& before, const std::vector<TokenId>& after) {
  Json commits = Json::array();
  for (size_t i = 0; i < after.size(); ++i) {
    if (after[i] >= 0 && before[i] < 0) commits.push_back({{"position", i}, {"token", after[i]}});
  }
  return commits;
}

/// Collects the updates of the only canvas; prints text as it becomes final unless JSON is wanted.
class Output {
 public:
  Output(const Tokenizer& tokenizer, const GenerateRequest& request)
      : detokenizer_(tokenizer, true),
        as_json_(request.wants_canvas),
        canvas_(static_cast<size_t>(request.gen_length), -1) {}

  void add(const GenerationUpdate& update) {
    if (update.finish == FinishReason::kError) {
      throw Error(static_cast<ErrorCode>(update.error_code), update.error_message);
    }
    for (const DecidedToken& decided : update.tokens) {
      ids_.push_back(decided.token);
      put(detokenizer_.push(decided.token));
    }
    if (update.canvas.size() == canvas_.size()) {
      Json commits = commits_between(canvas_, update.canvas);
      if (!commits.empty()) commits_.push_back(std::move(commits));
      canvas_ = update.canvas;
    }
    stats_ = update.stats;
    if (update.finish == FinishReason::kNone) return;
    finish_ = update.finish;
    put(detokenizer_.flush());
  }

  void close(double load_ms, double total_ms) {
    if (!as_json_) {
      std::fputs("\n", stdout);
      return;
    }
    const int forwards = stats_.num_forwards;
    Json json = {{"text", text_},
                 {"ids", ids_},
                 {"finish_reason", finish_ == FinishReason::kLength ? "length" : "stop"},
                 {"prompt_tokens", stats_.prompt_tokens},
                 {"completion_tokens", stats_.completion_tokens},
                 {"forwards", forwards},
                 {"refreshes", stats_.num_refreshes},
                 {"tokens_per_forward",
                  forwards == 0 ? 0.0 : static_cast<double>(stats_.completion_tokens) / forwards},
                 {"row_layers", stats_.row_layers},
                 {"cached_tokens", stats_.cached_tokens},
                 {"commits", commits_},
                 {"canvas", canvas_},
                 {"timings_ms",
                  {{"load", load_ms},
                   {"first_token", static_cast<double>(stats_.first_token_us) / 1000.0},
                   {"total", total_ms}}}};
    std::puts(json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  }

 private:
  void put(const std::string& text) {
    text_ += text;
    if (as_json_) return;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  Detokenizer detokenizer_;
  bool as_json_;
  std::vector<TokenId> canvas_;
  std::vector<TokenId> ids_;
  std::string text_;
  Json commits_ = Json::array();
  GenerationStats stats_;
  FinishReason finish_ = FinishReason::kNone;
};

int run_generate(const Settings& settings, const GenerateOptions& options) {
  const Clock::time_point start = Clock::now();
  const ModelInfo model = inspect_model(settings.model);
  const TextTools text = load_text_tools(settings.model.path, model);
  GenerateRequest request = make_request(options, load_decode_defaults(settings, model));
  request.prompt_ids = prompt_ids(options, text, model);
  if (!options.suffix.empty()) request.suffix_ids = text.tokenizer->encode(options.suffix, true);

  Engine engine(load_with_progress(settings), settings.engine,
                load_cache_settings(settings, model));
  engine.start();
  const double load_ms = ms_since(start);
  Output output(*text.tokenizer, request);
  const Clock::time_point submitted = Clock::now();
  std::vector<GenerateRequest> canvases;
  canvases.push_back(std::move(request));
  ResponseStream stream = engine.submit(std::move(canvases));
  while (const auto update = stream.next()) output.add(*update);
  output.close(load_ms, ms_since(submitted));
  return 0;
}

}  // namespace

Command generate_command() {
  const auto options = std::make_shared<GenerateOptions>();
  const char* input = "Input (one of --prompt, --chat, --tokens)";
  const char* sampling = "Sampling";
  Command command{"generate", "One prompt, prints text or JSON",
                  [options](const Settings& settings) { return run_generate(settings, *options); }};
  command.flags = {
      {"--prompt", "Raw prompt; - reads standard input", &options->prompt, input},
      {"--chat", "User message of a chat; - reads standard input", &options->chat, input},
      {"--system", "System message before --chat", &options->system, input},
      {"--tokens", "Raw prompt as token ids", &options->tokens, input, "1,2,3"},
      {"--suffix", "Text after the masks: infilling", &options->suffix, input},
      {"--seed", "With it the same text again", &options->seed, sampling},
      {"--top-p", "Least set of tokens of this probability; the model's unless given",
       &options->top_p, sampling},
      {"--top-k", "Most probable tokens; 0 = all; the model's unless given", &options->top_k,
       sampling},
      {"--ignore-eos", "Never choose an end token", &options->ignore_eos, sampling},
      {"--json", "Ids, commits of every forward and timings as JSON", &options->json},
  };
  command.setting_groups = kDecodingGroups;
  return command;
}

}  // namespace bicached
