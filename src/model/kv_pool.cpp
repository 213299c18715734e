#include "model/kv_pool.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "base/free_memory.h"

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

void KvPool::drop_pages_of_nobody() {
  if (slabs_.free_tokens() < slabs_.capacity_tokens()) return;
  for (const auto* tensors : {&keys_, &values_}) {
    for (const at::Tensor& tensor : *tensors) drop_pages(tensor.data_ptr(), tensor.nbytes());
  }
}

int64_t KvPool::bytes_per_token(const ModelConfig& config, at::ScalarType dtype) {
  return int64_t{2} * config.num_layers * config.num_kv_heads * config.head_size *
         static_cast<int64_t>(c10::elementSize(dtype));
}

}  // namespace bicached
