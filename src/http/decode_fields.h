#pragma once

#include "bicached/denoiser.h"
#include "bicached/request.h"
#include "bicached/settings.h"
#include "http/json_fields.h"

namespace bicached {

/// What chat and raw completions have in common: sampling, decoding, cache. `gen_length` is filled
/// in per prompt (`choose_gen_length`), `steps` with it.
struct CommonFields {
  GenerateRequest request;
  std::optional<int> steps;
  std::optional<int> max_tokens;
  bool has_seed = false;
  bool asks_for_intra_cache = false;
};

CommonFields read_common_fields(Fields& fields, const DecodeSettings& defaults,
                                const ModelInfo& model);

/// Refuses the fields of OpenAI's API that this server can't honour, unless they ask for nothing.
void refuse_unsupported_fields(Fields& fields);

/// `stop`: nothing, a string or up to 4.
std::vector<std::string> read_stops(Fields& fields);

/// Fills gen_length and steps for a prompt. Without max_tokens: the default, or what fits.
/// Throws kContextLengthExceeded with the numbers.
void choose_gen_length(GenerateRequest& request, const CommonFields& common,
                       const DecodeSettings& defaults, const ModelInfo& model);

}  // namespace bicached
