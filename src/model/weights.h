#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "bicached/load.h"
#include "model/model_config.h"
#include "model/safetensors.h"

namespace bicached {

/// x W^T + b. In float8 e4m3 a weight times its row's scale is the value.
struct Linear {
  at::Tensor weight;  // [out, in], compute dtype or float8 e4m3
  at::Tensor bias;    // [out], undefined without
  at::Tensor scale;   // float32 [1, out]; undefined in the compute dtype

  bool is_quantised() const { return scale.defined(); }
};

/// Of a weight [out, in] in a floating type; each row's greatest value becomes 448, the greatest of
/// e4m3.
Linear quantised(const at::Tensor& weight);

/// SwiGLU: gate and up are one matrix. m: width.
struct Mlp {
  Linear gate_up;  // [2 m, d]
  Linear down;     // [d, m]
};

/// S experts of width m that every token takes (a shared MLP is the sum of its columns, so of
/// experts), E more, and what chooses among these.
struct Experts {
  at::Tensor router;       // float32 [E, d]
  at::Tensor router_bias;  // float32 [E], undefined without
  Linear gate_up;          // weight [S + E, 2 m, d], scale [S + E, 2 m]
  Linear down;             // weight [S + E, d, m], scale [S + E, d]
};

/// One layer, made of parts. Letters: d width, H heads, G KV heads, D head size. Compute dtype
/// unless said, on the device. Query, key and value are one matrix: one GEMM.
struct LayerWeights {
  at::Tensor attention_norm;  // [d]
  Linear qkv;                 // [(H + 2 G) D, d]
  at::Tensor query_norm;      // [D], undefined without norms of heads
  at::Tensor key_norm;        // [D]
  Linear attention_out;       // [d, H D]
  at::Tensor mlp_norm;        // [d]
  std::optional<Mlp> mlp;     // this, or
  std::optional<Experts> experts;
};

struct ModelWeights {
  at::Tensor embedding;  // [V, d]
  std::vector<LayerWeights> layers;
  at::Tensor final_norm;  // [d]
  at::Tensor head;        // [V, d]; the embedding where tied
  int64_t num_parameters = 0;
};

/// Checks that the checkpoint holds exactly the tensors of the family, in their shapes, and returns
/// the number of parameters. Throws kInvalidModel naming what is missing, unexpected or misshapen.
int64_t check_tensors(const Checkpoint& checkpoint, const ParsedModel& model);

/// Bytes of all weights; `fp8`: the layers' matrices in float8 e4m3.
int64_t weight_bytes(const ParsedModel& model, at::ScalarType dtype, bool fp8);

/// Converts and places all weights. With `fp8` the layers' matrices are quantised on the way, one
/// layer after the other, so that they are never held twice.
ModelWeights load_weights(const Checkpoint& checkpoint, const ParsedModel& model, at::Device device,
                          at::ScalarType dtype, bool fp8, const LoadProgress& progress);

}  // namespace bicached
