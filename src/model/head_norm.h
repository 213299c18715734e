#pragma once

#include <ATen/core/Tensor.h>

namespace bicached {

/// RMSNorm of each head in place (Qwen3's q_norm and k_norm). heads: [N, H, D], rows may be
/// strided; weight: [D]. In float32, rounded once.
void norm_heads(const at::Tensor& heads, const at::Tensor& weight, double eps);

}  // namespace bicached
