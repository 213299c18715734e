#include "config/engine_defaults.h"

#include <algorithm>
#include <bit>

namespace bicached {
namespace {

constexpr int kLeastCanvases = 16, kMostCanvases = 128;
/// With so many rows an H100 or H200 multiplies for as long as it reads the weights.
constexpr int kRowsOfBlocks = 512;
constexpr int kLeastRows = 4096, kMostRows = 16384;
constexpr int kMemoryShare = 32;

/// A power of two, as the buffers of a forward are.
int rows_of_card(const ModelInfo& model) {
  const int64_t bytes_per_row = std::max<int64_t>(1, model.forward_bytes_per_row);
  const int64_t rows = model.device_bytes / kMemoryShare / bytes_per_row;
  return static_cast<int>(
      std::bit_floor(static_cast<uint64_t>(std::clamp<int64_t>(rows, kLeastRows, kMostRows))));
}

}  // namespace

EngineSettings resolve_engine_defaults(EngineSettings settings, const ModelInfo& model) {
  const bool is_card = model.device_bytes > 0;
  if (settings.max_running == 0) {
    const int block = std::max(1, model.decoder.block_length);
    settings.max_running =
        is_card ? std::clamp(kRowsOfBlocks / block, kLeastCanvases, kMostCanvases) : kLeastCanvases;
  }
  if (settings.max_rows_per_forward == 0) {
    settings.max_rows_per_forward = is_card ? rows_of_card(model) : kLeastRows;
  }
  return settings;
}

}  // namespace bicached
