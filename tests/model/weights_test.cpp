// Weights as they are loaded, beside their float8 form. On the CPU, which has both, though it
// multiplies only one.
#include "model/weights.h"

#include <ATen/ops/isfinite.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "model/float8.h"
#include "model/tiny_model.h"

namespace bicached {
namespace {

using testing::TempFolder;
using testing::widened;

void expect_rounded(const Linear& rounded, const Linear& exact) {
  ASSERT_TRUE(rounded.is_quantised());
  EXPECT_TRUE(at::isfinite(widened(rounded)).all().item<bool>());
  testing::expect_rounded(widened(rounded), widened(exact));
}

void expect_the_same_in_float8(const std::string& folder) {
  const c10::InferenceMode mode;
  const ParsedModel model = parse_model_folder(folder);
  const Checkpoint checkpoint = Checkpoint::open(folder);
  const auto load = [&](bool fp8) {
    return load_weights(checkpoint, model, at::kCPU, at::kFloat, fp8, {});
  };
  const ModelWeights exact = load(false), rounded = load(true);
  for (size_t i = 0; i < exact.layers.size(); ++i) {
    const LayerWeights &want = exact.layers[i], &got = rounded.layers[i];
    expect_rounded(got.qkv, want.qkv);
    expect_rounded(got.attention_out, want.attention_out);
    EXPECT_TRUE(got.mlp_norm.equal(want.mlp_norm));
    ASSERT_EQ(got.experts.has_value(), want.experts.has_value());
    if (want.experts) {
      expect_rounded(got.experts->gate_up, want.experts->gate_up);
      expect_rounded(got.experts->down, want.experts->down);
      EXPECT_TRUE(got.experts->router.equal(want.experts->router));
    } else {
      expect_rounded(got.mlp->gate_up, want.mlp->gate_up);
      expect_rounded(got.mlp->down, want.mlp->down);
    }
  }
}

TEST(Weights, AreTheSameInFloat8) {
  const TempFolder folder;
  write_tiny_model(folder);
  expect_the_same_in_float8(folder.path());
}

TEST(Weights, OfExpertsAreTheSameInFloat8) {
  const TempFolder folder;
  write_tiny_llada2(folder);
  expect_the_same_in_float8(folder.path());
}

/// 20 wide, where experts are 12 wide.
TEST(Weights, OfASharedExpertAreFilledUpWithZeros) {
  const std::string folder =
      BICACHED_SOURCE_DIR "/tests/reference/goldens-llada-moe/checkpoints/llada-moe-all";
  expect_the_same_in_float8(folder);
  const c10::InferenceMode mode;
  const ParsedModel model = parse_model_folder(folder);
  const ModelWeights weights =
      load_weights(Checkpoint::open(folder), model, at::kCPU, at::kFloat, true, {});
  const Experts& experts = *weights.layers.front().experts;
  const at::Tensor gate_up = widened(experts.gate_up).select(0, 1);  // the second half
  const at::Tensor down = widened(experts.down).select(0, 1);
  EXPECT_TRUE(gate_up.narrow(0, 8, 4).eq(0).all().item<bool>());
  EXPECT_TRUE(gate_up.narrow(0, 12 + 8, 4).eq(0).all().item<bool>());
  EXPECT_TRUE(down.narrow(1, 8, 4).eq(0).all().item<bool>());
  EXPECT_FALSE(gate_up.narrow(0, 0, 8).eq(0).any().item<bool>());
}

}  // namespace
}  // namespace bicached
