#pragma once

#include "model/weights.h"

namespace bicached {

/// What the router says of each row: float32 [N, chosen] weights, int64 [N, chosen] experts. x: [N,
/// d], any floating type; in float32. Without the experts that are shared.
struct Routing {
  at::Tensor weights;
  at::Tensor experts;
};
Routing route(const at::Tensor& x, const Experts& experts, const ExpertsConfig& config);

/// out [N, d] += the outputs of the experts that each row of x [N, d] takes, weighted; shared ones
/// weigh 1. Rows go through the matrices sorted by expert, so that each expert in use is read once:
/// with grouped products for bfloat16 on a CUDA card, else one product an expert. A row's result
/// does not depend on the other rows but by the rounding of the products. Weights in x's dtype.
void add_experts(const at::Tensor& x, const Experts& experts, const ExpertsConfig& config,
                 at::Tensor& out);

}  // namespace bicached
