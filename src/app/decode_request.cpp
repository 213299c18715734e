#include "app/decode_request.h"

#include <algorithm>

#include "config/decode_defaults.h"

namespace bicached {

GenerateRequest make_request(const DecodeSettings& resolved, int gen_length) {
  GenerateRequest request;
  request.gen_length = gen_length;
  DecodeParams& decode = request.decode;
  decode.algorithm = resolved.algorithm;
  decode.steps = default_steps(resolved, gen_length);
  decode.block_length = resolved.block_length;
  decode.params = resolved.params;
  decode.schedule = schedule_of(resolved.schedule);
  decode.eos_early_stop = resolved.eos_early_stop;
  decode.logits_eos_inf = resolved.logits_eos_inf;
  decode.confidence_eos_eot_inf = resolved.confidence_eos_eot_inf;
  decode.cfg_scale = static_cast<float>(resolved.cfg_scale);
  decode.intra_cache = intra_cache_of(resolved.intra_cache);
  decode.min_tokens = std::min(resolved.min_tokens, gen_length);
  SamplingParams& sampling = request.sampling;
  sampling.temperature = static_cast<float>(resolved.temperature);
  sampling.top_p = static_cast<float>(resolved.top_p);
  sampling.top_k = resolved.top_k;
  sampling.min_p = static_cast<float>(resolved.min_p);
  sampling.repetition_penalty = static_cast<float>(resolved.repetition_penalty);
  return request;
}

}  // namespace bicached
