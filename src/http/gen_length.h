#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "bicached/http_server.h"
#include "bicached/request.h"
#include "config/json_fields.h"

namespace bicached {

/// How long an answer a client asks for.
struct WantedLength {
  std::optional<int64_t> max_tokens;  // nothing: it doesn't say
  bool until_the_end = false;         // -1: as much as fits
  std::string field = "max_tokens";   // as the client calls it
};

/// What of a dialect its lengths depend on.
struct LengthRules {
  bool grows = false;             // without a length it goes on to its end
  const char* prompt = "prompt";  // the field's name
};

/// Reads the length from a field; a later call overrules an earlier one. 0 asks for the prompt
/// alone, -1 is "no limit". Throws kInvalidRequest for other negative numbers.
void read_length(Fields& fields, const char* name, WantedLength& length);

/// Fills gen_length, grows_to and steps of a request whose tokens are filled in. What doesn't fit
/// is cut, or refused if the server is set so. Throws kContextLengthExceeded in OpenAI's words,
/// which clients know it by, when not even one token fits.
void choose_gen_length(GenerateRequest& request, const WantedLength& length,
                       std::optional<int> steps, const LengthRules& rules, const Backend& backend);

/// How many masks stand before a suffix, of a request that has some.
int64_t gap_length(const WantedLength& length, const Backend& backend);

}  // namespace bicached
