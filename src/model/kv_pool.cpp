#include "model/kv_pool.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

namespace bicached {

KvPool::KvPool(const ModelConfig& config, int64_t capacity_tokens, at::Device device,
               at::ScalarType dtype)
    : slabs_(capacity_tokens) {
  const auto options = at::TensorOptions().device(device).dtype(dtype);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    keys_.push_back(at::empty({capacity_tokens, config.num_kv_heads, config.head_size}, options));
    values_.push_back(at::empty_like(keys_.back()));
  }
}

int64_t KvPool::bytes_per_token(const ModelConfig& config, at::ScalarType dtype) {
  return int64_t{2} * config.num_layers * config.num_kv_heads * config.head_size *
         static_cast<int64_t>(c10::elementSize(dtype));
}

}  // namespace bicached
