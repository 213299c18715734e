#pragma once

#include <string>

namespace bicached {

/// The folder of `model`, which names it, or a repository whose snapshot is in Hugging Face's cache
/// ("GSAI-ML/LLaDA-8B-Instruct"). Throws kInvalidSettings when there is neither.
std::string find_model_folder(const std::string& model);

}  // namespace bicached
