#pragma once

#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <memory>
#include <string>
#include <vector>

#include "bicached/load.h"
#include "denoise/torch_denoiser.h"

namespace bicached::testing {

inline int num_cards() {
  return at::hasCUDA() ? c10::impl::VirtualGuardImpl(at::kCUDA).deviceCount() : 0;
}
inline bool has_cuda() { return num_cards() > 0; }
/// Where there are several, one that is nobody's default.
inline at::Device last_card() {
  return {at::kCUDA, static_cast<c10::DeviceIndex>(num_cards() - 1)};
}

/// A model on a device, one thread on the CPU.
inline std::unique_ptr<TorchDenoiser> load_model(const std::string& folder,
                                                 const std::string& device,
                                                 const std::string& dtype = "float32",
                                                 int64_t kv_cache_bytes = 1 << 20) {
  ModelSettings settings;
  settings.path = folder;
  settings.dtype = dtype;
  settings.device = device;
  settings.num_threads = 1;
  settings.kv_cache_bytes = kv_cache_bytes;
  auto denoiser = load_denoiser(settings, {});
  return std::unique_ptr<TorchDenoiser>(dynamic_cast<TorchDenoiser*>(denoiser.release()));
}

/// Rows [begin, end) of a canvas of `ids`.
inline RowGroup rows(SlabId slab, const std::vector<TokenId>& ids, int begin, int end) {
  RowGroup group;
  group.slab = slab;
  group.begin = begin;
  group.end = end;
  group.key_end = static_cast<int>(ids.size());
  group.tokens.assign(ids.begin() + begin, ids.begin() + end);
  return group;
}

}  // namespace bicached::testing
