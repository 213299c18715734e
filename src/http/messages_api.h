#pragma once

#include <cstdint>
#include <string>

#include "http/job.h"

namespace bicached {

/// Anthropic's POST /v1/messages/count_tokens.
int64_t count_message_tokens(const std::string& body, const CodecContext& context);

}  // namespace bicached
