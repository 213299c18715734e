#pragma once

#include "bicached/http_server.h"
#include "bicached/request.h"
#include "config/json_fields.h"
#include "http/gen_length.h"

namespace bicached {

/// What chat and raw completions have in common: sampling, decoding, cache. `gen_length` is filled
/// in per prompt (`choose_gen_length`), `steps` with it.
struct CommonFields {
  GenerateRequest request;
  std::optional<int> steps;
  WantedLength length;
  bool asks_for_intra_cache = false;
};

/// All but the length, which dialects call by other names.
CommonFields read_common_fields(Fields& fields, const Backend& backend);

inline constexpr size_t kMaxStops = 32;  // editors and evaluation harnesses send a dozen

/// Nothing, a string, or up to `most`; empty ones are left out.
std::vector<std::string> read_texts(Fields& fields, const char* name, size_t most);

}  // namespace bicached
