#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bicached/denoiser.h"
#include "bicached/settings.h"

namespace bicached {

/// Called while weights are read and placed: bytes done of all bytes. From the loading thread.
using LoadProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

/// What a device needs memory for beside weights and K/V.
struct DeviceRoom {
  int64_t entry_bytes = 0;  // stored prefixes
  int max_rows = 0;         // EngineSettings::max_rows_per_forward
};

/// Of the largest forward: of `max_rows` (EngineSettings::max_rows_per_forward), or of the longest
/// canvas, which goes alone, but four times as many at most.
int64_t forward_bytes(const ModelInfo& model, int max_rows);

/// Loads a model folder (config.json, safetensors) and makes it ready to decode.
///
/// Throws kInvalidModel naming file, tensor and what would be right; kOutOfMemory when the weights
/// or the smallest K/V pool do not fit; kInvalidSettings for a device or dtype this machine has
/// not. The K/V pool of a card gets what is free after the weights, less `room`, unless its size is
/// set.
std::unique_ptr<Denoiser> load_denoiser(const ModelSettings& settings, const LoadProgress& progress,
                                        const DeviceRoom& room = {});

/// What a folder holds, from config.json and the safetensors headers alone: no weights are read.
/// `device` and `dtype` are what `load_denoiser` would choose. Throws as above.
ModelInfo inspect_model(const ModelSettings& settings);

/// Names of the model families this program knows, e.g. "llada".
std::vector<std::string> family_names();

}  // namespace bicached
