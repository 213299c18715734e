#include "model/head_norm.h"

namespace bicached {

void norm_heads(const at::Tensor& heads, const at::Tensor& weight, double eps) {
  const at::Tensor wide = heads.to(at::kFloat);
  const at::Tensor scale = wide.square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
  heads.copy_(wide.mul(scale).mul_(weight.to(at::kFloat)));
}

}  // namespace bicached
