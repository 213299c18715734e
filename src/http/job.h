#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "bicached/http_server.h"
#include "bicached/request.h"
#include "http/name_log.h"

namespace bicached {

enum class Dialect { kChat, kText };

/// A request to generate, as the routes work on it: everything typed and checked. Canvas i is the
/// answer's choice i; with several prompts and n, the choices of a prompt are neighbours.
struct Job {
  Dialect dialect = Dialect::kChat;
  std::string model;  // the name to answer with
  bool stream = false;
  bool include_usage = false;
  bool diffusion_stream = false;
  bool echo = false;
  int choices_per_prompt = 1;
  int num_logprobs = -1;  // -1: none asked for
  std::vector<std::string> stops;
  std::vector<GenerateRequest> canvases;
  int64_t prompt_tokens = 0;  // of every prompt once, suffixes included
};

/// What a request is checked against.
struct CodecContext {
  const Backend& backend;
  const std::vector<std::string>& aliases;
  int max_canvases;  // of one request
  NameLog& unknown_fields;
};

/// Body of POST /v1/chat/completions and POST /v1/completions. Throws Error naming the field.
Job parse_chat_request(const std::string& body, const CodecContext& context);
Job parse_text_request(const std::string& body, const CodecContext& context);

/// The model named in a request, or the served one for none. Throws kModelNotFound.
void check_model_name(const std::string& name, const CodecContext& context);

}  // namespace bicached
