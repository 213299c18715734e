#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bicached/http_server.h"
#include "bicached/request.h"
#include "http/name_log.h"

namespace bicached {

/// The form of an answer: OpenAI's chat and raw completions, its responses, Anthropic's messages,
/// llama.cpp's infilling.
enum class Dialect { kChat, kText, kResponses, kMessages, kInfill };

/// A request to generate, as the routes work on it: everything typed and checked. Canvas i is the
/// answer's choice i; with several prompts and n, the choices of a prompt are neighbours.
struct Job {
  Dialect dialect = Dialect::kChat;
  std::string model;  // the name to answer with: the one asked for
  bool stream = false;
  bool include_usage = false;
  bool diffusion_stream = false;
  bool echo = false;
  int choices_per_prompt = 1;
  int num_logprobs = -1;  // -1: none asked for
  std::vector<std::string> stops;
  std::vector<GenerateRequest> canvases;
  int64_t prompt_tokens = 0;  // of every prompt once, suffixes included
  /// Log-probabilities of each prompt's tokens, where they are asked for.
  std::vector<std::vector<DecidedToken>> prompt_scores;
  /// Fields that an answer repeats (responses).
  nlohmann::ordered_json repeated;

  /// Nothing is to be generated: the engine isn't asked.
  bool is_empty() const { return !canvases.empty() && canvases[0].gen_length == 0; }
};

/// What a request is checked against.
struct CodecContext {
  const Backend& backend;
  const std::vector<std::string>& aliases;
  int max_canvases;  // of one request
  NameLog& unknown_fields;
};

/// Bodies of the routes. Each throws Error naming the field.
Job parse_chat_request(const std::string& body, const CodecContext& context);
Job parse_text_request(const std::string& body, const CodecContext& context);
/// Mistral's POST /v1/fim/completions: `prompt` and `suffix`, answered in the form of a chat.
Job parse_fim_request(const std::string& body, const CodecContext& context);
/// llama.cpp's POST /infill.
Job parse_infill_request(const std::string& body, const CodecContext& context);
/// OpenAI's POST /v1/responses.
Job parse_responses_request(const std::string& body, const CodecContext& context);
/// Anthropic's POST /v1/messages.
Job parse_messages_request(const std::string& body, const CodecContext& context);
/// Its prompt alone: Anthropic's POST /v1/messages/count_tokens.
int64_t count_message_tokens(const std::string& body, const CodecContext& context);

/// Throws kModelNotFound for a name that is neither the model's nor an alias.
void check_model_name(const std::string& name, const CodecContext& context);

}  // namespace bicached
