#include "http/gen_length.h"

#include <algorithm>

#include "bicached/error.h"
#include "config/decode_defaults.h"

namespace bicached {
namespace {

constexpr int64_t kMostTokens = 1 << 20;  // more is no other wish

[[noreturn]] void refuse_length(int64_t longest, int64_t num_given, int64_t wanted,
                                const LengthRules& rules, const std::string& field) {
  throw Error(ErrorCode::kContextLengthExceeded,
              "This model's maximum context length is " + std::to_string(longest) +
                  " tokens. However, you requested " + std::to_string(num_given + wanted) +
                  " tokens (" + std::to_string(num_given) + " in the " + rules.prompt + ", " +
                  std::to_string(wanted) + " in the completion). Please reduce the length of the " +
                  rules.prompt + " or completion.",
              field);
}

/// The gaps of a request have their length already.
void check_gaps(const GenerateRequest& request, const WantedLength& length, int64_t longest,
                const LengthRules& rules) {
  const auto num_masks = std::ranges::count_if(request.given, [](TokenId t) { return t < 0; });
  const int64_t total = request.longest_canvas();
  if (total > longest) {
    refuse_length(longest, total - num_masks, num_masks, rules, rules.prompt);
  }
  if (!length.max_tokens || *length.max_tokens >= num_masks) return;
  throw Error(ErrorCode::kInvalidRequest,
              length.field + " is " + std::to_string(*length.max_tokens) + ", but " +
                  std::to_string(num_masks) +
                  " tokens are to be filled in, one for each mask token",
              length.field);
}

}  // namespace

void read_length(Fields& fields, const char* name, WantedLength& length) {
  const std::optional<int64_t> value = fields.integer(name);
  if (!value) return;
  const std::string field = fields.path_of(name);
  if (*value < -1) {
    throw Error(
        ErrorCode::kInvalidRequest,
        field + " is " + std::to_string(*value) + "; allowed is 0 or more, or -1 for no limit",
        field);
  }
  length.until_the_end = *value == -1;
  length.max_tokens.reset();
  if (!length.until_the_end) length.max_tokens = std::min(*value, kMostTokens);
  length.field = field;
}

int64_t gap_length(const WantedLength& length, const Backend& backend) {
  return length.max_tokens.value_or(backend.defaults.max_tokens);
}

void choose_gen_length(GenerateRequest& request, const WantedLength& length,
                       std::optional<int> steps, const LengthRules& rules, const Backend& backend) {
  const DecodeSettings& defaults = backend.defaults;
  const int64_t longest = backend.engine->longest_canvas(request);
  if (!request.given.empty()) {
    request.gen_length = static_cast<int>(request.given.size());
    check_gaps(request, length, longest, rules);
  } else {
    const auto given = static_cast<int64_t>(request.prompt_ids.size() + request.suffix_ids.size());
    const int64_t room = longest - given;
    const int64_t wanted = gap_length(length, backend);
    if (room < std::min<int64_t>(wanted, 1)) {
      refuse_length(longest, given, wanted, rules, rules.prompt);
    }
    if (length.max_tokens && wanted > room && defaults.max_tokens_over_room == "refuse") {
      refuse_length(longest, given, wanted, rules, length.field);
    }
    request.gen_length = static_cast<int>(std::min(wanted, room));
    if (!length.max_tokens && request.suffix_ids.empty() && (rules.grows || length.until_the_end)) {
      const int64_t most = length.until_the_end ? room
                                                : std::max<int64_t>(defaults.longest_chat,
                                                                    request.decode.min_tokens);
      request.grows_to = static_cast<int>(std::min(most, room));
    }
  }
  const int64_t most = length.max_tokens.value_or(request.longest_generation());
  int& min_tokens = request.decode.min_tokens;
  if (min_tokens > most && min_tokens == defaults.min_tokens) {
    min_tokens = static_cast<int>(most);  // the request did not name it
  } else if (min_tokens > most && length.max_tokens) {
    throw Error(ErrorCode::kInvalidRequest,
                "min_tokens is " + std::to_string(min_tokens) + "; allowed is at most " +
                    length.field + ", " + std::to_string(most),
                "min_tokens");
  }
  request.decode.steps = steps.value_or(default_steps(defaults, std::max(request.gen_length, 1)));
}

}  // namespace bicached
