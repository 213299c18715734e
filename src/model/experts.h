#pragma once

#include "model/weights.h"

namespace bicached {

/// What the router says of each row: float32 [N, chosen] weights, int64 [N, chosen] experts. x: [N,
/// d], any floating type; in float32.
struct Routing {
  at::Tensor weights;
  at::Tensor experts;
};
Routing route(const at::Tensor& x, const Experts& experts, const ExpertsConfig& config);

/// out [N, d] += the chosen experts' outputs for x [N, d], weighted. Rows go through the matrices
/// sorted by expert, so that each expert that anybody chose is read once: with grouped products for
/// bfloat16 on a CUDA card, else one product an expert in use. A row's result does not depend on
/// the other rows but by the rounding of the products.
void add_experts(const at::Tensor& x, const Experts& experts, const ExpertsConfig& config,
                 at::Tensor& out);

}  // namespace bicached
