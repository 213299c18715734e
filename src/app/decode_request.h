#pragma once

#include "bicached/engine.h"
#include "bicached/request.h"
#include "bicached/settings.h"

namespace bicached {

/// A request without a prompt that is decoded as these resolved settings say.
GenerateRequest make_request(const DecodeSettings& resolved, int gen_length);

/// Probes go on for a while after their requests.
void wait_for_probes(Engine& engine);

}  // namespace bicached
