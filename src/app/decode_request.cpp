#include "app/decode_request.h"

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
  decode.eos_early_stop = resolved.eos_early_stop;
  decode.intra_cache = intra_cache_of(resolved.intra_cache);
  request.sampling.temperature = static_cast<float>(resolved.temperature);
  return request;
}

}  // namespace bicached
