#pragma once

#include <span>
#include <string>
#include <string_view>

#include "bicached/error.h"
#include "bicached/field_limit.h"
#include "bicached/request.h"

namespace bicached {

/// All fields with a range: max_tokens, steps, block_length, temperature, top_p, top_k, min_p,
/// penalties, min_tokens, cfg_scale, top_logprobs, logit_bias, refresh_interval, refresh_commits,
/// refresh_depth, depth, prefix_len, and the parameters of the decoding algorithms. The one place:
/// the HTTP codec, the command line and the defaults of the configuration check against it.
std::span<const FieldLimit> field_limits();

/// The limit of a field, or null.
const FieldLimit* find_field_limit(std::string_view name);

/// "0 < threshold <= 1", "1 to 1048576 tokens".
std::string describe_limit(const FieldLimit& limit);

/// Throws Error(code, param = name) naming field, value and range, also for NaN. The limit is that
/// of `limit_name`, empty: of the same name; where there is none that is a defect (kInternal).
void check_field(std::string_view name, double value, ErrorCode code = ErrorCode::kInvalidRequest,
                 std::string_view limit_name = {});

/// All numbers of a request. Lengths against the model's are the engine's business.
void check_params(const DecodeParams& decode, const SamplingParams& sampling, int gen_length,
                  ErrorCode code = ErrorCode::kInvalidRequest);

}  // namespace bicached
