// Requests of all kinds in one batch, on real models with random weights: each gets the tokens that
// it gets alone.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "bicached/engine.h"
#include "bicached/error.h"
#include "bicached/unmasker.h"
#include "model/load_model.h"
#include "model/tiny_model.h"

namespace bicached {
namespace {

using testing::TempFolder;

constexpr int kNumRequests = 300;

/// Checkpoints that the Python references left, by the name of the test.
const std::map<std::string, std::string> kCheckpoints{
    {"a2d", "goldens-a2d/checkpoints/a2d-untied"},
    {"sdar", "goldens-sdar/checkpoints/sdar-untied-b8"},
    {"sdar_moe", "goldens-sdar-moe/checkpoints/sdar-moe-tiny"},
    {"llada_moe", "goldens-llada-moe/checkpoints/llada-moe-all"},
    {"llada2", "goldens-llada2/checkpoints/llada2-tiny"},
};

class MixedBatch : public ::testing::TestWithParam<const char*> {
 protected:
  MixedBatch() {
    std::string path = folder_.path();
    if (GetParam() == std::string("llada")) {
      testing::write_tiny_model(folder_);
    } else if (GetParam() == std::string("dream")) {
      testing::write_tiny_dream(folder_);
    } else {
      path = BICACHED_SOURCE_DIR "/tests/reference/" + kCheckpoints.at(GetParam());
    }
    EngineSettings settings;
    settings.max_queued = kNumRequests;
    CacheSettings cache;
    cache.policy = "fixed";  // one that learns would change its mind between the runs
    cache.depth = 2;
    cache.more_depths = {deep_};
    cache.min_uses = cache.min_prefix_len = 1;
    engine_ =
        std::make_unique<Engine>(testing::load_model(path, "cpu", "float32"), settings, cache);
    engine_->start();
  }

  /// Each of its numbers at random; every algorithm comes up.
  GenerateRequest random_request(int i) {
    const auto pick = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random_);
    };
    GenerateRequest request;
    const int block = engine_->model().attention_block;
    const int num_shared = pick(0, 2) == 0 ? 0 : std::max(10, block + block / 4);
    for (int n = 0; n < num_shared; ++n) request.prompt_ids.push_back(7 + n);
    for (int n = pick(1, 10); n > 0; --n) request.prompt_ids.push_back(pick(0, 54));
    request.cache.prefix_len = num_shared;
    request.cache.policy =
        std::vector<std::string>{"off", "fixed", "full"}[static_cast<size_t>(pick(0, 2))];
    if (request.cache.policy == "fixed") request.cache.depth = pick(0, 1) == 0 ? 2 : deep_;
    request.gen_length = pick(4, 24);
    const int suffix = pick(0, 1) * pick(0, 3);
    for (int n = block > 0 ? 0 : suffix; n > 0; --n) request.suffix_ids.push_back(pick(0, 54));
    SamplingParams& sampling = request.sampling;
    sampling.seed = static_cast<uint64_t>(pick(0, 1000));
    sampling.temperature = pick(0, 1) == 0 ? 0.0f : 0.8f;
    if (pick(0, 2) == 0) sampling.top_p = 0.9f;
    if (pick(0, 2) == 0) sampling.top_k = 10;
    if (pick(0, 3) == 0) sampling.min_p = 0.1f;
    if (pick(0, 3) == 0) sampling.frequency_penalty = 0.7f;
    if (pick(0, 3) == 0) sampling.repetition_penalty = 1.3f;
    if (pick(0, 3) == 0) sampling.logit_bias = {{pick(0, 54), 4.0f}};
    if (pick(0, 5) == 0) sampling.allowed_tokens = {3, 9, 12, 20, 31, 45};
    DecodeParams& decode = request.decode;
    decode.algorithm = unmasker_names()[static_cast<size_t>(i) % unmasker_names().size()];
    decode.params = {{"threshold", 0.3},         {"kl_threshold", 0.5},
                     {"entropy_bound", 1.0},     {"editing_threshold", 0.4},
                     {"entropy_threshold", 3.0}, {"alg_temp", pick(0, 1) * 0.5}};
    decode.schedule = pick(0, 1) == 0 ? Schedule::kEven : Schedule::kTimesteps;
    decode.steps = pick(1, request.gen_length);
    decode.block_length = block > 0 ? block : pick(2, 12);
    decode.intra_cache = static_cast<IntraCache>(pick(0, 3));
    decode.cfg_scale = pick(0, 3) == 0 ? 0.7f : 0.0f;
    decode.logits_eos_inf = pick(0, 3) == 0;
    if (pick(0, 3) == 0) decode.stop_tokens = {pick(0, 54)};
    if (pick(0, 3) == 0) decode.min_tokens = pick(1, 4);
    if (pick(0, 3) == 0) decode.bad_words = {{pick(0, 54)}, {pick(0, 54), pick(0, 54)}};
    decode.confidence_eos_eot_inf = pick(0, 3) == 0;
    decode.eos_early_stop = pick(0, 1) == 0;
    request.cache.refresh_interval = pick(1, 5);
    request.cache.refresh_commits = pick(1, 8);
    request.cache.refresh_depth = pick(0, deep_);
    request.wants_canvas = true;
    return request;
  }

  /// The canvases of the requests as they end.
  std::vector<std::vector<TokenId>> decode(const std::vector<GenerateRequest>& requests) {
    ResponseStream stream = engine_->submit(requests);
    std::vector<std::vector<TokenId>> canvases(requests.size());
    while (const auto update = stream.next()) {
      EXPECT_NE(update->finish, FinishReason::kError) << update->error_message;
      canvases[static_cast<size_t>(update->index)] = update->canvas;
    }
    return canvases;
  }

  TempFolder folder_;
  const int deep_ = kCheckpoints.contains(GetParam()) ? 3 : 5;  // layers, at most all
  std::mt19937 random_{11};
  std::unique_ptr<Engine> engine_;
};

TEST_P(MixedBatch, EachGetsTheTokensItGetsAlone) {
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < kNumRequests; ++i) requests.push_back(random_request(i));
  decode(requests);  // from here on the prefix is stored
  const int64_t hits = engine_->cache_stats().hits, forwards_before = engine_->stats().forwards;
  std::vector<std::vector<TokenId>> alone;
  for (const GenerateRequest& request : requests) alone.push_back(decode({request})[0]);
  EXPECT_GT(engine_->cache_stats().hits - hits, kNumRequests / 5);
  const int64_t forwards_alone = engine_->stats().forwards - forwards_before;
  const auto together = decode(requests);
  EXPECT_LT(engine_->stats().forwards - forwards_before - forwards_alone, forwards_alone / 2)
      << "no batch";
  for (size_t i = 0; i < requests.size(); ++i) {
    const DecodeParams& how = requests[i].decode;
    EXPECT_EQ(static_cast<int>(alone[i].size()), requests[i].gen_length);
    EXPECT_EQ(together[i], alone[i])
        << "request " << i << ": " << how.algorithm << ", cache "
        << static_cast<int>(*how.intra_cache) << ", policy " << requests[i].cache.policy
        << ", cfg_scale " << how.cfg_scale << ", temperature " << requests[i].sampling.temperature;
  }
}

/// Right after the forward over all rows, one over the block says the same of it: the row before
/// the block too, where the logits are shifted, and the guide's rows.
TEST_P(MixedBatch, ABlocksOwnRowsSayWhatAllRowsSaid) {
  std::vector<GenerateRequest> deciding;
  for (int i = 0; i < 40; ++i) {
    GenerateRequest& request = deciding.emplace_back(random_request(i));
    request.cache = {};
    request.cache.policy = "off";
    request.decode.intra_cache = IntraCache::kDual;
    request.decode.steps = request.gen_length;
  }
  std::vector<GenerateRequest> discarding = deciding;
  for (GenerateRequest& request : discarding) {
    request.decode.first_forward = FirstForward::kDiscarded;
  }
  const auto want = decode(deciding), got = decode(discarding);
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i], want[i]) << "request " << i << ": " << deciding[i].decode.algorithm;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, MixedBatch,
                         ::testing::Values("llada", "dream", "a2d", "llada_moe", "llada2", "sdar",
                                           "sdar_moe"),
                         [](const auto& family) { return std::string(family.param); });

/// Models whose blocks attend only backwards: a prefix's whole blocks are reused, and nothing
/// changes.
class BlockCausal : public MixedBatch {};

TEST_P(BlockCausal, ReuseIsWholeBlocksAndExact) {
  const int block = engine_->model().attention_block;
  ASSERT_GT(block, 0);
  std::vector<GenerateRequest> without;
  for (int i = 0; i < 30; ++i) {
    GenerateRequest& request = without.emplace_back(random_request(i));
    request.cache = {};
    request.cache.policy = "off";
  }
  std::vector<GenerateRequest> with = without;
  int64_t whole_blocks = 0;
  for (GenerateRequest& request : with) {
    request.cache.policy = "";
    request.cache.prefix_len = static_cast<int>(request.prompt_ids.size());
    whole_blocks += *request.cache.prefix_len / block * block;
  }
  const auto want = decode(without);
  decode(with);
  const int64_t before = engine_->cache_stats().cached_tokens;
  EXPECT_EQ(decode(with), want);
  EXPECT_EQ(engine_->cache_stats().cached_tokens - before, whole_blocks);
}

TEST_P(BlockCausal, WhatBlocksCantDoIsRefusedByName) {
  const auto refused_field = [&](GenerateRequest request) {
    try {
      engine_->submit({request});
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidRequest);
      return error.param();
    }
    return std::string("nothing");
  };
  GenerateRequest request = random_request(0);
  request.decode.block_length += 1;
  EXPECT_EQ(refused_field(request), "block_length");
  request.decode.block_length -= 1;
  request.suffix_ids = {3};
  EXPECT_EQ(refused_field(request), "suffix");
}

INSTANTIATE_TEST_SUITE_P(Families, BlockCausal, ::testing::Values("llada2", "sdar", "sdar_moe"),
                         [](const auto& family) { return std::string(family.param); });

}  // namespace
}  // namespace bicached
