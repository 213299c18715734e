// Forwards of blocks as CUDA graphs say what they say step by step. Skipped without a CUDA card.
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "bicached/error.h"
#include "denoise/torch_denoiser.h"
#include "model/cuda/cuda_runtime.h"
#include "model/load_model.h"
#include "model/tiny_model.h"

namespace bicached {
namespace {

constexpr int kLength = 96, kBlockBegin = 40, kBlockEnd = 72, kNumSteps = 5;

const std::string kDemo = BICACHED_SOURCE_DIR "/models/demo";

std::unique_ptr<TorchDenoiser> load(const std::string& folder, const std::string& weights,
                                    bool cuda_graphs, at::Device card = testing::last_card()) {
  ModelSettings settings;
  settings.path = folder;
  settings.device = card.str();
  settings.dtype = "bfloat16";
  settings.weights = weights;
  settings.kv_cache_bytes = 64 << 20;
  settings.cuda_graphs = cuda_graphs;
  auto denoiser = load_denoiser(settings, {});
  return std::unique_ptr<TorchDenoiser>(dynamic_cast<TorchDenoiser*>(denoiser.release()));
}

/// Decodes the same block of these canvases; of every forward what the model said.
std::vector<RowResult> decode(TorchDenoiser& model, const std::vector<int>& which = {0, 1, 2}) {
  const int num_ids = model.info().mask_token;
  const auto num_canvases = static_cast<int>(which.size());
  const SamplingParams greedy;
  std::vector<RowResult> all;
  std::vector<SlabId> slabs;
  std::vector<std::vector<TokenId>> canvases;
  const auto run = [&](bool whole) {
    Forward forward;
    for (int i = 0; i < num_canvases; ++i) {
      const auto c = static_cast<size_t>(i);
      forward.groups.push_back(testing::rows(slabs[c], canvases[c], whole ? 0 : kBlockBegin,
                                             whole ? kLength : kBlockEnd));
      for (int row = kBlockBegin; row < kBlockEnd; ++row) {
        LogitRow& wanted = forward.logit_rows.emplace_back();
        wanted.group = i;
        wanted.row = row;
        wanted.sampling = &greedy;
      }
    }
    const auto results = model.run(forward);
    all.insert(all.end(), results.begin(), results.end());
    return results;
  };
  for (int i = 0; i < num_canvases; ++i) {
    slabs.push_back(*model.open_slab(kLength));
    canvases.emplace_back();
    for (int n = 0; n < kLength; ++n) {
      const int id = (n * 7 + which[static_cast<size_t>(i)] * 13) % num_ids;
      canvases.back().push_back(n < kBlockBegin ? id : model.info().mask_token);
    }
  }
  run(true);
  for (int step = 0; step < kNumSteps; ++step) {
    const auto results = run(false);
    for (size_t i = 0; i < results.size(); ++i) {
      const size_t row = i % (kBlockEnd - kBlockBegin);
      if (static_cast<int>(row) % kNumSteps != step) continue;
      canvases[i / (kBlockEnd - kBlockBegin)][kBlockBegin + row] = results[i].token;
    }
  }
  for (const SlabId slab : slabs) model.close_slab(slab);
  return all;
}

/// A model with experts, or without, and its weights' type.
class ForwardGraphsTest : public ::testing::TestWithParam<std::tuple<bool, std::string>> {
 protected:
  void SetUp() override {
    if (!testing::has_cuda()) GTEST_SKIP() << "no CUDA device here";
    const auto& [has_experts, weights] = GetParam();
    if (weights == "fp8" && CudaRuntime::get().compute_capability(testing::last_card().index()) <
                                CudaRuntime::kFloat8Capability) {
      GTEST_SKIP() << "no float8 on this card";
    }
    if (has_experts) testing::write_tiny_llada2(folder_);
  }
  std::unique_ptr<TorchDenoiser> load(bool cuda_graphs) const {
    const auto& [has_experts, weights] = GetParam();
    return bicached::load(has_experts ? folder_.path() : kDemo, weights, cuda_graphs);
  }

 private:
  testing::TempFolder folder_;
};

TEST_P(ForwardGraphsTest, DecideWhatForwardsStepByStepDecide) {
  const auto graphs = load(true), steps = load(false);
  const auto got = decode(*graphs), want = decode(*steps);
  EXPECT_GT(graphs->num_graphs(), 0) << "captured";
  EXPECT_EQ(steps->num_graphs(), 0);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].token, want[i].token) << i;
    EXPECT_NEAR(got[i].probability, want[i].probability, 1e-3) << i;
    EXPECT_NEAR(got[i].entropy, want[i].entropy, 1e-2) << i;
  }
}

TEST_P(ForwardGraphsTest, SayOfACanvasWhatTheySayOfItAlone) {
  if (GetParam() == std::tuple(false, "fp8")) {
    GTEST_SKIP() << "twelve layers of roundings to float8 make much of how a product adds";
  }
  const auto model = load(true);
  const auto together = decode(*model), alone = decode(*model, {1});
  // Of the first forward: later ones go on from what was decided, and a tie may be decided
  // otherwise.
  for (size_t row = 0; row < kBlockEnd - kBlockBegin; ++row) {
    const RowResult& got = together[kBlockEnd - kBlockBegin + row];
    EXPECT_NEAR(got.probability, alone[row].probability, 0.05) << row;
    EXPECT_NEAR(got.entropy, alone[row].entropy, 0.2) << row;
    if (alone[row].margin > 0.1) {
      EXPECT_EQ(got.token, alone[row].token) << row;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ForwardGraphsTest,
                         ::testing::Combine(::testing::Bool(),
                                            ::testing::Values("bfloat16", "fp8")),
                         [](const auto& made) {
                           return std::string(std::get<0>(made.param) ? "experts_" : "dense_") +
                                  std::get<1>(made.param);
                         });

TEST(Cards, EachSaysTheSameAndLeavesTheOthersAlone) {
  if (testing::num_cards() < 2) GTEST_SKIP() << "fewer than two CUDA cards here";
  const auto first = load(kDemo, "bfloat16", true, {at::kCUDA, 0}),
             last = load(kDemo, "bfloat16", true);
  std::vector<RowResult> want, got;
  std::thread([&] { want = decode(*first); }).join();
  got = decode(*last);
  const auto again = decode(*first);
  EXPECT_EQ(c10::impl::VirtualGuardImpl(at::kCUDA).getDevice().index(), 0) << "still this thread's";
  EXPECT_GT(last->num_graphs(), 0) << "captured";
  EXPECT_EQ(first->info().device, "cuda:0");
  EXPECT_EQ(last->info().device, testing::last_card().str());
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].token, want[i].token) << i;
    EXPECT_EQ(got[i].probability, want[i].probability) << i;
    EXPECT_EQ(again[i].token, want[i].token) << i;
  }
}

TEST(Cards, OneThatIsNotThereIsRefusedWithThoseThatAre) {
  ModelSettings settings;
  settings.path = BICACHED_SOURCE_DIR "/models/demo";
  settings.device = "cuda:" + std::to_string(testing::num_cards());
  try {
    inspect_model(settings);
    FAIL() << "taken";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.param(), "device");
    EXPECT_NE(message.find("device is " + settings.device + "; "), std::string::npos) << message;
    const std::string there = testing::has_cuda() ? testing::last_card().str() : "no CUDA device";
    EXPECT_NE(message.find(there), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace bicached
