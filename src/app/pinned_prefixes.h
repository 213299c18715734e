#pragma once

#include <vector>

#include "app/model_folder.h"

namespace bicached {

/// Token ids that every chat with one of these system prompts begins with; without a chat template
/// those of the text itself, as a raw prompt has them. Throws kInvalidSettings naming the place in
/// the list: the template takes no system message, the text is empty or shorter than any prefix, or
/// it leaves no room in the model's longest canvas.
std::vector<std::vector<TokenId>> encode_pinned_prefixes(const CacheSettings& settings,
                                                         const TextTools& text,
                                                         const ModelInfo& model);

}  // namespace bicached
