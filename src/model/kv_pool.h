#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/model_config.h"
#include "model/slab_allocator.h"

namespace bicached {

/// K (with RoPE applied) and V of all running canvases: two tensors a layer, [pool tokens, G, D] in
/// the compute dtype. A canvas owns a contiguous range (its slab) for its whole life; no paging,
/// since its length never grows. Engine thread only.
class KvPool {
 public:
  KvPool(const ModelConfig& config, int64_t capacity_tokens, at::Device device,
         at::ScalarType dtype);

  SlabAllocator& slabs() { return slabs_; }
  const SlabAllocator& slabs() const { return slabs_; }
  const at::Tensor& keys(int layer) const { return keys_[static_cast<size_t>(layer)]; }
  const at::Tensor& values(int layer) const { return values_[static_cast<size_t>(layer)]; }

  /// While no slab is open: gives the pages that slabs have written back to the system. Memory of
  /// the host only.
  void drop_pages_of_nobody();

  /// K and V of all layers for one token.
  static int64_t bytes_per_token(const ModelConfig& config, at::ScalarType dtype);

 private:
  SlabAllocator slabs_;
  std::vector<at::Tensor> keys_;
  std::vector<at::Tensor> values_;
};

}  // namespace bicached
