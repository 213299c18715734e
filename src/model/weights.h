#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "bicached/load.h"
#include "model/model_config.h"
#include "model/safetensors.h"

namespace bicached {

/// One layer. Letters: d width, H heads, G KV heads, D head size, m MLP width. Compute dtype, on
/// the device. Query, key and value are one matrix, gate and up another: one GEMM each.
struct LayerWeights {
  at::Tensor attention_norm;  // [d]
  at::Tensor qkv;             // [(H + 2 G) D, d]
  at::Tensor qkv_bias;        // [(H + 2 G) D], undefined without biases
  at::Tensor query_norm;      // [D], undefined without norms of heads
  at::Tensor key_norm;        // [D]
  at::Tensor attention_out;   // [d, H D]
  at::Tensor mlp_norm;        // [d]
  at::Tensor gate_up;         // [2 m, d]
  at::Tensor down;            // [d, m]
};

struct ModelWeights {
  at::Tensor embedding;  // [V, d]
  std::vector<LayerWeights> layers;
  at::Tensor final_norm;  // [d]
  at::Tensor head;        // [V, d]; the embedding where tied
  int64_t num_parameters = 0;
  int64_t num_bytes = 0;
};

/// Checks that the checkpoint holds exactly the tensors of the family, in their shapes, and returns
/// the number of parameters. Throws kInvalidModel naming what is missing, unexpected or misshapen.
int64_t check_tensors(const Checkpoint& checkpoint, const ParsedModel& model);

/// Converts and places all weights.
ModelWeights load_weights(const Checkpoint& checkpoint, const ParsedModel& model, at::Device device,
                          at::ScalarType dtype, const LoadProgress& progress);

}  // namespace bicached
