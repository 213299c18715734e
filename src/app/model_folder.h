#pragma once

#include <memory>
#include <string>

#include "bicached/chat_template.h"
#include "bicached/denoiser.h"
#include "bicached/settings.h"
#include "bicached/tokenizer.h"

namespace bicached {

/// The torch-free half of a model folder.
struct TextTools {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;  // null: neither the folder nor the family has one
  bool has_family_template = false;             // the folder has none
};

/// Loads both and checks that the model knows every id of the tokenizer: another model's tokenizer
/// in the folder would else end in an index outside the embedding. Throws kInvalidModel.
TextTools load_text_tools(const std::string& folder, const ModelInfo& model);

/// Defaults of requests: settings, else the model's generation_config.json, else its family's.
/// Throws kInvalidSettings for an algorithm that there is not.
DecodeSettings load_decode_defaults(const Settings& settings, const ModelInfo& model);
/// With the plan that the model starts from.
CacheSettings load_cache_settings(const Settings& settings, const ModelInfo& model);

/// Loads the weights; shows on standard error how far it is when that takes long.
std::unique_ptr<Denoiser> load_with_progress(const Settings& settings);

}  // namespace bicached
