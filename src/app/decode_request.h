#pragma once

#include "bicached/request.h"
#include "bicached/settings.h"

namespace bicached {

/// A request without a prompt that is decoded as these resolved settings say.
GenerateRequest make_request(const DecodeSettings& resolved, int gen_length);

}  // namespace bicached
