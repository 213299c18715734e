#include "cache/similarity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bicached/error.h"
#include "denoise/torch_denoiser.h"
#include "model/load_model.h"
#include "model/tiny_model.h"

namespace bicached {
namespace {

using namespace bicached::testing;
using ::testing::DoubleNear;
using ::testing::Pointwise;
using ::testing::SizeIs;

std::vector<std::pair<int, int>> steps_of(const std::vector<RatioSimilarity>& ratios,
                                          double threshold) {
  std::vector<std::pair<int, int>> steps;
  for (const DepthTable::Step& step : table_steps(ratios, threshold)) {
    steps.emplace_back(step.min_ratio_percent, step.depth);
  }
  return steps;
}

TEST(TableSteps, ARatioHasOneOnlyWhenItsDepthExceedsAllBefore) {
  const std::vector<RatioSimilarity> ratios = {{10, 1, {1.0, 0.98, 0.5, 0.99}},
                                               {30, 1, {1.0, 0.90, 0.9, 0.99}},
                                               {31, 1, {1.0, 0.99, 0.9, 0.99}},
                                               {70, 1, {1.0, 0.99, 0.98, 0.99}}};
  using Steps = std::vector<std::pair<int, int>>;
  EXPECT_EQ(steps_of(ratios, 0.97), (Steps{{10, 2}, {70, 4}}));
  EXPECT_EQ(steps_of(ratios, 0.98), (Steps{{10, 1}, {31, 2}})) << "strictly above";
  EXPECT_EQ(steps_of(ratios, 0.985), (Steps{{10, 1}, {31, 2}}));
  EXPECT_EQ(steps_of({}, 0.97), Steps{});
}

class SimilarityTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "cuda" && !has_cuda()) GTEST_SKIP() << "no CUDA device here";
    write_tiny_model(folder_);
    // Room for 100 tokens: 5 layers, 2 KV heads of 8, float32.
    model = load_model(folder_.path(), GetParam(), "float32", 100 * 2 * 5 * 16 * 4);
  }

  std::vector<std::vector<double>> measure(const std::vector<PrefixInContext>& canvases) {
    return measure_similarity(*model, model->pool(), canvases);
  }
  static PrefixInContext canvas(int first, int prefix_len, int length) {
    PrefixInContext out;
    out.prefix_len = prefix_len;
    for (int i = 0; i < length; ++i) out.ids.push_back((first + i * 7) % 50);
    return out;
  }

  const TempFolder folder_;
  std::unique_ptr<TorchDenoiser> model;
};

TEST_P(SimilarityTest, IsOneInTheFirstLayerAndLessBelow) {
  const auto layers = measure({canvas(3, 6, 20)}).at(0);
  ASSERT_THAT(layers, SizeIs(5));
  EXPECT_NEAR(layers[0], 1.0, 1e-6) << "K and V of the first layer are of the tokens alone";
  for (size_t layer = 1; layer < 5; ++layer) {
    EXPECT_LT(layers[layer], 0.9999) << layer;
    EXPECT_GT(layers[layer], 0.0) << layer;
  }
}

TEST_P(SimilarityTest, IsTheSameTogetherAndAlone) {
  // The second and third have their prefix in common.
  const std::vector<PrefixInContext> canvases = {canvas(3, 6, 20), canvas(8, 5, 12),
                                                 canvas(8, 5, 17), canvas(1, 1, 3)};
  const auto together = measure(canvases);
  ASSERT_THAT(together, SizeIs(canvases.size()));
  for (size_t i = 0; i < canvases.size(); ++i) {
    EXPECT_THAT(measure({canvases[i]}).at(0), Pointwise(DoubleNear(1e-5), together[i])) << i;
  }
}

TEST_P(SimilarityTest, GivesThePoolBackAlsoWhenItIsTooSmall) {
  measure({canvas(3, 40, 60)});
  EXPECT_EQ(model->free_tokens(), model->capacity_tokens());
  try {
    measure({canvas(3, 40, 61)});
    FAIL() << "101 tokens found room in 100";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_EQ(error.param(), "kv_cache_bytes");
  }
  EXPECT_EQ(model->free_tokens(), model->capacity_tokens());
}

INSTANTIATE_TEST_SUITE_P(Devices, SimilarityTest, ::testing::Values("cpu", "cuda"),
                         [](const auto& device) { return device.param; });

}  // namespace
}  // namespace bicached
