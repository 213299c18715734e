#pragma once

#include <string>

namespace bicached {

/// The folder of `model`, which names it, or a repository whose snapshot is in Hugging Face's cache
/// ("GSAI-ML/LLaDA-8B-Instruct"). Throws kInvalidSettings when there is neither.
std::string find_model_folder(const std::string& model);

/// What a model is called: its folder's name, or of a snapshot in that cache the repository's.
std::string model_name(const std::string& folder);

}  // namespace bicached
