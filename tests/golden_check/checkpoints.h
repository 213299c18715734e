#pragma once

#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bicached/load.h"

/// The checkpoints of a golden folder, each loaded once, in float32 on the CPU unless
/// BICACHED_GOLDEN_DTYPE and BICACHED_GOLDEN_DEVICE say otherwise; BICACHED_GOLDEN_GRAPHS=off: on a
/// card without CUDA graphs.
class Checkpoints {
 public:
  explicit Checkpoints(std::filesystem::path folder) : folder_(std::move(folder)) {}

  /// Null when this program does not know the family.
  bicached::Denoiser* find(const std::string& name, const std::string& family) {
    const std::vector<std::string> known = bicached::family_names();
    if (std::find(known.begin(), known.end(), family) == known.end()) return nullptr;
    auto& denoiser = loaded_[name];
    if (!denoiser) {
      denoiser = load(name, environment("BICACHED_GOLDEN_DTYPE", "float32"),
                      environment("BICACHED_GOLDEN_DEVICE", "cpu"));
    }
    return denoiser.get();
  }

  /// A copy of its own.
  std::unique_ptr<bicached::Denoiser> load(const std::string& name, const std::string& dtype,
                                           const std::string& device) const {
    bicached::ModelSettings settings;
    settings.path = (folder_ / name).string();
    settings.dtype = dtype;
    settings.device = device;
    settings.kv_cache_bytes = 64 << 20;  // several are loaded at a time
    settings.cuda_graphs = environment("BICACHED_GOLDEN_GRAPHS", "on") != std::string("off");
    return bicached::load_denoiser(settings, {});
  }

 private:
  static std::string environment(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value ? value : otherwise;
  }

  std::filesystem::path folder_;
  std::map<std::string, std::unique_ptr<bicached::Denoiser>> loaded_;
};
