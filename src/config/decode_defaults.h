#pragma once

#include <optional>
#include <string>

#include "bicached/denoiser.h"
#include "bicached/request.h"
#include "bicached/settings.h"

namespace bicached {

/// Fills what `settings` leaves open (-1, empty) from the model folder's generation_config.json
/// (gen_length or max_new_tokens, block_length, steps, remasking or alg, parameters of the
/// algorithms; do_sample, temperature, top_p, top_k, min_p, repetition_penalty, min_new_tokens),
/// then from how the family's reference decodes, then with the value in brackets beside each field
/// of DecodeSettings. A folder without that file is fine.
///
/// In the result no field is -1 or empty. `steps` 0 means one step a token: read it with
/// `default_steps`. Throws kInvalidModel naming file and key when the file holds a value out of
/// range, kInvalidSettings when the setting does. Whether the algorithm exists is the decode room's
/// to check.
DecodeSettings resolve_decode_defaults(const DecodeSettings& settings,
                                       const std::string& model_folder,
                                       const ReferenceDecoder& reference = {});

/// Steps of a request that names none, of resolved defaults: never more than there are tokens.
int default_steps(const DecodeSettings& resolved, int gen_length);

/// A request without a prompt that is decoded as these resolved settings say.
GenerateRequest make_request(const DecodeSettings& resolved, int gen_length);

/// Its name, as in `intra_cache`.
std::string intra_cache_name(IntraCache intra_cache);

/// Its name, as in `schedule`.
std::string schedule_name(Schedule schedule);

/// Of a checked name of `schedule`; nothing for "auto".
std::optional<Schedule> schedule_of(const std::string& name);

/// Of a checked name of `intra_cache`; nothing for "auto".
std::optional<IntraCache> intra_cache_of(const std::string& name);

}  // namespace bicached
