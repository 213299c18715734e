#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "model/weights.h"

namespace bicached::testing {

/// Weights [.., out, in] as they are meant, float32.
inline at::Tensor widened(const Linear& linear) {
  const at::Tensor values = linear.weight.to(at::kFloat);
  if (!linear.is_quantised()) return values;
  std::vector<int64_t> a_row = values.sizes().vec();
  a_row.back() = 1;
  return values.mul(linear.scale.view(a_row));
}

/// Each value within the rounding of e4m3's three bits, or of the least that its row's scale can
/// say.
inline void expect_rounded(const at::Tensor& rounded, const at::Tensor& exact) {
  constexpr double kStep = 1.0 / 16;  // half of the last bit
  ASSERT_EQ(rounded.sizes(), exact.sizes());
  const at::Tensor least = exact.abs().amax(-1, true).mul(kStep / 128);  // below: not normal
  EXPECT_TRUE(rounded.sub(exact).abs().le(exact.abs().mul(kStep).add(least)).all().item<bool>());
}

}  // namespace bicached::testing
