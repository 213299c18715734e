#include "model/row_ops.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <limits>

namespace bicached {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class RowOps : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  /// Of what is rounded once to the dtype.
  double tolerance() const { return GetParam() == at::kFloat ? 1e-6 : 0.005; }
};

TEST_P(RowOps, SoftmaxOfRowsOfAnyWidthIsTheDefinition) {
  for (const int64_t width : {1, 15, 16, 17, 333}) {
    at::Tensor scores = at::randn({2, 5, width}).mul(30).to(GetParam());
    const at::Tensor expected = at::softmax(scores.to(at::kDouble).mul(0.25), -1);
    softmax_rows(scores, width, 0.25);
    EXPECT_TRUE(at::allclose(scores.to(at::kDouble), expected, tolerance(), 1e-7)) << width;
  }
}

TEST_P(RowOps, SoftmaxTakesNoShareOfWhatOnlyFillsARow) {
  at::Tensor scores = at::randn({2, 5, 32}).mul(30).to(GetParam());
  scores.narrow(-1, 21, 11).fill_(1000);
  const at::Tensor expected = at::softmax(scores.narrow(-1, 0, 21).to(at::kDouble).mul(0.25), -1);
  softmax_rows(scores, 21, 0.25);
  EXPECT_TRUE(at::allclose(scores.narrow(-1, 0, 21).to(at::kDouble), expected, tolerance(), 1e-7));
  EXPECT_TRUE(scores.narrow(-1, 21, 11).eq(0).all().item<bool>());
}

TEST_P(RowOps, SoftmaxOfExtremesIsANumberAndOfNoNumberNone) {
  at::Tensor scores = at::tensor({1e30f, -1e30f, 1e30f, -kInfinity}).to(GetParam()).view({1, 4});
  softmax_rows(scores, 4, 1.0);
  EXPECT_TRUE(
      at::allclose(scores.to(at::kFloat), at::tensor({0.5f, 0.0f, 0.5f, 0.0f}).view({1, 4})));
  at::Tensor broken = at::tensor({1.0f, kNan, 2.0f}).to(GetParam()).view({1, 3});
  softmax_rows(broken, 3, 1.0);
  EXPECT_TRUE(broken.isnan().all().item<bool>());
}

TEST_P(RowOps, SiluTimesUpIsTheDefinition) {
  for (const int64_t width : {1, 16, 100}) {
    const at::Tensor gate_up = at::randn({7, 2 * width}).mul(8).to(GetParam());
    at::Tensor out = at::empty({7, width}, gate_up.options());
    silu_times_up(gate_up, out);
    const at::Tensor wide = gate_up.to(at::kDouble);
    const at::Tensor expected =
        at::silu(wide.narrow(1, 0, width)).mul(wide.narrow(1, width, width));
    EXPECT_TRUE(at::allclose(out.to(at::kDouble), expected, tolerance(), 1e-6)) << width;
  }
}

TEST_P(RowOps, SiluOfExtremesIsANumberAndOfNoNumberNone) {
  const at::Tensor gate_up =
      at::tensor({-1e4f, 1e4f, -90.0f, 90.0f, kNan, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f})
          .to(GetParam())
          .view({1, 10});
  at::Tensor out = at::empty({1, 5}, gate_up.options());
  silu_times_up(gate_up, out);
  EXPECT_TRUE(at::allclose(out.to(at::kFloat).narrow(1, 0, 4),
                           at::tensor({0.0f, 1e4f, 0.0f, 90.0f}).view({1, 4}), 0.005, 1e-6));
  EXPECT_TRUE(out.select(1, 4).isnan().all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(Dtypes, RowOps, ::testing::Values(at::kFloat, at::kBFloat16));

}  // namespace
}  // namespace bicached
