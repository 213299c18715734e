#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "bicached/error.h"
#include "bicached/unmasker.h"
#include "decode/canvas_decoder.h"
#include "decode/noise.h"
#include "decode/planner.h"

namespace bicached {
namespace {

/// Rows [begin, end) that enter at a layer.
struct RowSpan {
  int begin, end, enter_layer;
  bool operator==(const RowSpan&) const = default;
};
using Spans = std::vector<RowSpan>;

Spans spans_of(const PlanState& state) {
  Spans spans;
  for (const RowGroup& group : plan_rows(state)) {
    EXPECT_EQ(group.key_end, state.length);
    spans.push_back({group.begin, group.end, group.enter_layer});
  }
  return spans;
}

PlanState state_of(int prefix_len, int depth) {
  PlanState state;
  state.length = 100;
  state.num_layers = 8;
  state.block_begin = 60;
  state.block_end = 70;
  state.reuse.prefix_len = prefix_len;
  state.reuse.depth = depth;
  return state;
}

Reuse reuse_of(int prefix_len, int depth, int refresh_depth, int interval, int commits) {
  return {{IntraCache::kNone, interval, commits, refresh_depth}, prefix_len, depth};
}

TEST(Planner, WithoutACacheRunsEveryRow) {
  EXPECT_EQ(spans_of(state_of(0, 0)), (Spans{{0, 100, 0}}));
}

TEST(Planner, RefreshLetsThePrefixEnterAtTheDepth) {
  PlanState state = state_of(40, 3);
  state.refresh_due = true;
  EXPECT_EQ(spans_of(state), (Spans{{0, 40, 3}, {40, 100, 0}}));
  state.refresh_due = false;
  EXPECT_EQ(spans_of(state), (Spans{{40, 100, 0}}));
}

TEST(Planner, DepthZeroRefreshIsAFullForward) {
  PlanState state = state_of(40, 0);
  state.refresh_due = true;
  EXPECT_EQ(spans_of(state), (Spans{{0, 100, 0}}));
}

TEST(Planner, FullDepthLeavesNothingToRefresh) {
  PlanState state = state_of(40, 8);
  state.refresh_due = true;
  EXPECT_EQ(spans_of(state), (Spans{{40, 100, 0}}));
}

TEST(Planner, InsideABlockRunsWhatTheIntraCacheLeaves) {
  PlanState state = state_of(0, 0);
  state.at_block_start = false;
  state.reuse.intra_cache = IntraCache::kPrefix;
  EXPECT_EQ(spans_of(state), (Spans{{60, 100, 0}}));
  state.reuse.intra_cache = IntraCache::kDual;
  EXPECT_EQ(spans_of(state), (Spans{{60, 70, 0}}));
  state.rows_before_block = 1;
  EXPECT_EQ(spans_of(state), (Spans{{59, 70, 0}}));
}

TEST(Planner, RefreshInsideADualBlockKeepsTheRestFrozen) {
  PlanState state = state_of(40, 3);
  state.at_block_start = false;
  state.refresh_due = true;
  state.reuse.intra_cache = IntraCache::kDual;
  EXPECT_EQ(spans_of(state), (Spans{{0, 40, 3}, {60, 70, 0}}));
}

TEST(Planner, ARefreshEntersAtTheGreaterOfBothDepths) {
  PlanState state = state_of(40, 3);
  state.refresh_due = true;
  state.reuse.refresh_depth = 5;
  EXPECT_EQ(spans_of(state), (Spans{{0, 40, 3}, {40, 100, 0}})) << "the first forward is none";
  state.at_first_forward = false;
  EXPECT_EQ(spans_of(state), (Spans{{0, 40, 5}, {40, 100, 0}}));
  state.reuse.refresh_depth = 2;
  EXPECT_EQ(spans_of(state), (Spans{{0, 40, 3}, {40, 100, 0}}));
}

TEST(Planner, AdaptiveRunsTheBlockAloneBetweenRefreshes) {
  PlanState state = state_of(40, 3);
  state.reuse.intra_cache = IntraCache::kAdaptive;
  state.refresh_due = true;
  EXPECT_EQ(spans_of(state), (Spans{{0, 40, 3}, {40, 100, 0}})) << "the first forward runs all";
  state.at_first_forward = state.refresh_due = false;
  EXPECT_EQ(spans_of(state), (Spans{{60, 70, 0}})) << "at the start of a block too";
  state.rows_before_block = 1;
  EXPECT_EQ(spans_of(state), (Spans{{59, 70, 0}}));
}

TEST(Planner, AdaptiveRefreshEntersOutsideTheBlockWhereTokensAreTheSame) {
  PlanState state = state_of(40, 3);
  state.reuse.intra_cache = IntraCache::kAdaptive;
  state.prompt_len = 50;
  state.reuse.refresh_depth = 5;
  state.at_first_forward = state.at_block_start = false;
  state.refresh_due = true;
  EXPECT_EQ(spans_of(state), (Spans{{0, 50, 5}, {50, 70, 0}, {70, 100, 5}}));
  state.rows_before_block = 1;
  EXPECT_EQ(spans_of(state), (Spans{{0, 49, 5}, {49, 70, 0}, {70, 100, 5}}));
  state.reuse.depth = 6;
  EXPECT_EQ(spans_of(state), (Spans{{0, 40, 6}, {40, 49, 5}, {49, 70, 0}, {70, 100, 5}}));
  state.reuse.refresh_depth = 0;
  EXPECT_EQ(spans_of(state), (Spans{{0, 40, 6}, {40, 100, 0}}));
  state.reuse.refresh_depth = 8;
  EXPECT_EQ(spans_of(state), (Spans{{49, 70, 0}})) << "nothing outside runs again";
}

TEST(Planner, BlocksThatAttendOnlyBackwardsRunFromWhatIsNotFinalOn) {
  PlanState state = state_of(0, 0);
  state.attention_block = 16;
  state.block_begin = 70;  // the prompt's end is in the active block
  state.block_end = 80;
  state.settled_end = 32;
  std::vector<std::tuple<int, int, int>> groups;
  for (const RowGroup& group : plan_rows(state)) {
    groups.emplace_back(group.begin, group.end, group.key_end);
    EXPECT_EQ(group.enter_layer, 0);
  }
  EXPECT_EQ(groups,
            (std::vector<std::tuple<int, int, int>>{{32, 48, 48}, {48, 64, 64}, {64, 80, 80}}));
}

TEST(Noise, IsUniformAndAFunctionOfItsArguments) {
  double sum = 0, sum_squares = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const double u =
        counter_uniform(7, static_cast<uint64_t>(i / 100), static_cast<uint64_t>(i % 100));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    sum_squares += u * u;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.01);
  EXPECT_NEAR(sum_squares / kDraws, 1.0 / 3, 0.01);
  EXPECT_EQ(counter_uniform(1, 2, 3), counter_uniform(1, 2, 3));
  EXPECT_NE(counter_uniform(1, 2, 3), counter_uniform(1, 3, 2));
}

std::vector<double> noise_of(int count, uint64_t seed) {
  std::vector<double> noise;
  for (int i = 0; i < count; ++i) {
    noise.push_back(counter_uniform(seed, 1, static_cast<uint64_t>(i)));
  }
  return noise;
}

std::unique_ptr<Unmasker> unmasker_of(const std::string& name, const AlgorithmParams& params = {}) {
  DecodeParams decode;
  decode.algorithm = name;
  decode.params = params;
  return make_unmasker(decode);
}

/// Every algorithm of the table keeps these promises, by either schedule.
class UnmaskerContract : public testing::TestWithParam<std::tuple<std::string, Schedule>> {
 protected:
  static std::vector<Candidate> candidates(int count, uint64_t seed) {
    std::vector<Candidate> list;
    for (int i = 0; i < count; ++i) {
      const auto u = static_cast<float>(counter_uniform(seed, 0, static_cast<uint64_t>(i)));
      list.push_back({10 + i, i, u, u / 2, 1 - u, u / 10});
    }
    return list;
  }
  std::unique_ptr<Unmasker> unmasker() const { return unmasker_of(std::get<0>(GetParam())); }

  /// Decodes 30 positions in blocks of 8 with made-up results. Returns canvas and forwards.
  std::pair<std::vector<TokenId>, int> decode(int steps, uint64_t seed) const {
    GenerateRequest request;
    request.prompt_ids = {5, 6};
    request.gen_length = 30;
    request.sampling.seed = seed;
    request.decode.algorithm = std::get<0>(GetParam());
    request.decode.schedule = std::get<1>(GetParam());
    request.decode.block_length = 8;
    request.decode.steps = steps;
    ModelInfo model;
    model.num_layers = 4;
    model.mask_token = 99;
    CanvasDecoder decoder(request, model, {});
    int num_forwards = 0;
    for (; !decoder.finished() && num_forwards < 100; ++num_forwards) {
      Forward forward;
      decoder.append_to(forward, 0, {});
      std::vector<RowResult> results;
      for (const LogitRow& row : forward.logit_rows) {
        RowResult& result = results.emplace_back();
        const double u =
            counter_uniform(static_cast<uint64_t>(num_forwards), 7, static_cast<uint64_t>(row.row));
        result.token = static_cast<TokenId>(90 * u);
        result.probability = result.confidence = static_cast<float>(u);
        result.margin = static_cast<float>(u / 2);
        result.entropy = static_cast<float>(1 - u);
        result.divergence = static_cast<float>(u / 20);
      }
      const int masked = decoder.canvas().num_masked();
      const bool revises = unmasker()->max_revisions() > 0;
      decoder.commit(results);  // throws at a position that is decided already, unless it revises
      EXPECT_TRUE(decoder.canvas().num_masked() < masked || revises) << "a forward for nothing";
    }
    EXPECT_TRUE(decoder.finished());
    return {decoder.canvas().tokens(), num_forwards};
  }
};

TEST_P(UnmaskerContract, ChoosesAscendingValidIndicesAndIsDeterministic) {
  const auto unmasker = this->unmasker();
  for (int count = 1; count < 40; ++count) {
    const auto list = candidates(count, static_cast<uint64_t>(count));
    const auto noise = noise_of(count, static_cast<uint64_t>(count));
    for (int step = 0; step < 4; ++step) {
      const BlockProgress progress{step, 4, 40, count, count, std::get<1>(GetParam()), noise};
      const std::vector<int> chosen = unmasker->choose(list, progress);
      EXPECT_EQ(chosen, unmasker->choose(list, progress));
      EXPECT_GE(static_cast<int>(chosen.size()), std::min(count, unmasker->min_choices(progress)));
      for (size_t i = 0; i < chosen.size(); ++i) {
        EXPECT_GE(chosen[i], i == 0 ? 0 : chosen[i - 1] + 1);
        EXPECT_LT(chosen[i], count);
      }
    }
  }
}

TEST_P(UnmaskerContract, TiesGoToTheLowestPosition) {
  const std::vector<Candidate> equal(5, Candidate{0, 1, 0.5f, 0.1f, 1.0f});
  const std::vector<double> noise(5, 0.5);
  const BlockProgress progress{0, 5, 5, 5, 5, std::get<1>(GetParam()), noise};
  const auto unmasker = this->unmasker();
  const int count = std::max(0, std::min(1, unmasker->min_choices(progress)));
  EXPECT_EQ(unmasker->choose(equal, progress), std::vector<int>(static_cast<size_t>(count), 0));
}

TEST_P(UnmaskerContract, EveryForwardDecidesSomethingAndTheTextIsTheSeeds) {
  for (const int steps : {4, 30, 100}) {
    const auto [tokens, num_forwards] = decode(steps, 3);
    EXPECT_LE(num_forwards, 30 + 4 * unmasker()->max_revisions());
    EXPECT_EQ(decode(steps, 3).first, tokens);
  }
}

std::string contract_name(const testing::TestParamInfo<UnmaskerContract::ParamType>& info) {
  return std::get<0>(info.param) +
         (std::get<1>(info.param) == Schedule::kEven ? "_even" : "_timesteps");
}

INSTANTIATE_TEST_SUITE_P(All, UnmaskerContract,
                         testing::Combine(testing::ValuesIn(unmasker_names()),
                                          testing::Values(Schedule::kEven, Schedule::kTimesteps)),
                         contract_name);

TEST(Unmasker, ParametersOfOneNameAreOneParameter) {
  std::map<std::string, const UnmaskerParam*> known;
  for (const UnmaskerInfo& info : unmasker_table()) {
    for (const UnmaskerParam& param : info.params) {
      const auto& [at, is_new] = known.emplace(param.limit.name, &param);
      EXPECT_EQ(at->second->default_value, param.default_value) << param.limit.name;
      EXPECT_EQ(at->second->limit.max, param.limit.max) << param.limit.name;
      EXPECT_GE(param.limit.min, 0) << "-1 leaves a setting open";
    }
  }
  EXPECT_EQ(known.size(), unmasker_params().size());
}

TEST(Unmasker, EachGoesByItsOwnNumber) {
  // Token, probability, margin, entropy.
  const std::vector<Candidate> list{
      {0, 1, 0.9f, 0.1f, 2.0f}, {1, 1, 0.5f, 0.4f, 1.0f}, {2, 1, 0.4f, 0.2f, 0.5f}};
  const std::vector<double> noise{0.3, 0.2, 0.7};
  const BlockProgress progress{0, 3, 3, 3, 3, Schedule::kEven, noise};
  EXPECT_EQ(unmasker_of("low_confidence")->choose(list, progress), std::vector<int>{0});
  EXPECT_EQ(unmasker_of("maskgit_plus")->choose(list, progress), std::vector<int>{0});
  EXPECT_EQ(unmasker_of("topk_margin")->choose(list, progress), std::vector<int>{1});
  EXPECT_EQ(unmasker_of("entropy")->choose(list, progress), std::vector<int>{2});
  EXPECT_EQ(unmasker_of("random")->choose(list, progress), std::vector<int>{2});
  EXPECT_EQ(unmasker_of("origin")->choose(list, progress), (std::vector<int>{0, 1}));
}

TEST(Unmasker, EntropyBoundTakesThoseOfTheLeastSumWithoutTheGreatest) {
  const std::vector<Candidate> list{
      {0, 1, 0.5f, 0, 0.4f}, {1, 1, 0.9f, 0, 0.1f}, {2, 1, 0.8f, 0, 0.2f}, {3, 1, 0.1f, 0, 0.9f}};
  const auto count = [&](double bound) {
    return unmasker_of("entropy_bound", {{"entropy_bound", bound}})->choose(list, {});
  };
  EXPECT_EQ(count(0.05), std::vector<int>{1});
  EXPECT_EQ(count(0.15), (std::vector<int>{1, 2}));        // 0.3 - 0.2
  EXPECT_EQ(count(0.35), (std::vector<int>{0, 1, 2}));     // 0.7 - 0.4
  EXPECT_EQ(count(0.75), (std::vector<int>{0, 1, 2, 3}));  // 1.6 - 0.9
}

TEST(Unmasker, EntropyMultiBlockTakesThoseUpToTheThresholdAndOneOfTheFirstBlock) {
  const auto multi = unmasker_of("entropy_multi_block", {{"entropy_threshold", 1.0}});
  std::vector<Candidate> list(4);
  const auto choose = [&](std::vector<float> entropies, Schedule schedule) {
    for (size_t i = 0; i < 4; ++i) list[i].entropy = entropies[i];
    BlockProgress progress;
    progress.num_masked = 4;
    progress.num_masked_in_first_block = 2;
    progress.schedule = schedule;
    return multi->choose(list, progress);
  };
  for (const Schedule schedule : {Schedule::kEven, Schedule::kTimesteps}) {
    EXPECT_EQ(choose({1.5f, 1.0f, 0.2f, 2.0f}, schedule), (std::vector<int>{1, 2}));
    EXPECT_EQ(choose({1.5f, 1.4f, 0.2f, 0.3f}, schedule), (std::vector<int>{1, 2, 3}));
    EXPECT_EQ(choose({1.5f, 1.6f, 1.7f, 1.8f}, schedule), (std::vector<int>{0}));
  }
  EXPECT_EQ(choose({1.5f, 1.6f, 1.2f, 1.8f}, Schedule::kEven), (std::vector<int>{0, 2}));
  EXPECT_EQ(choose({1.5f, 1.6f, 1.2f, 1.8f}, Schedule::kTimesteps), (std::vector<int>{0}));
}

TEST(Unmasker, KlassTakesWhatIsProbableAndStableElseTheSchedule) {
  const auto klass = unmasker_of("klass", {{"threshold", 0.6}, {"kl_threshold", 0.01}});
  std::vector<Candidate> list{
      {0, 1, 0.7f, 0, 0, 0.02f}, {1, 1, 0.65f, 0, 0, 0.005f}, {2, 1, 0.5f, 0, 0, 0.0f}};
  const BlockProgress progress{0, 3, 3, 3};
  EXPECT_EQ(klass->choose(list, progress), std::vector<int>{1});
  list[1].divergence = 0.02f;
  EXPECT_EQ(klass->choose(list, progress), std::vector<int>{0});
  EXPECT_TRUE(klass->wants_divergence());
}

TEST(Unmasker, QuotaThresholdCarriesOverWhatItLeft) {
  const auto unmasker = unmasker_of("quota_threshold", {{"threshold", 0.5}});
  const std::vector<Candidate> list{{0, 1, 0.9f}, {1, 1, 0.4f}, {2, 1, 0.6f}, {3, 1, 0.3f}};
  EXPECT_EQ(unmasker->choose(list, {0, 2, 4, 4}), (std::vector<int>{0, 2}));
  // Of three left after the first step three are looked at, and one is good enough or the best.
  const std::vector<Candidate> rest(list.begin() + 1, list.end());
  EXPECT_EQ(unmasker->choose(rest, {1, 2, 4, 3}), std::vector<int>{1});
  EXPECT_EQ(unmasker->min_choices({5, 2, 4, 2}), 1) << "steps go on while something is left";
}

/// Chi-square of counts against shares, as deviations (Wilson and Hilferty 1931).
double chi_square_deviation(const std::vector<int>& counts, const std::vector<double>& shares) {
  const double draws = std::accumulate(counts.begin(), counts.end(), 0.0);
  double chi_square = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    chi_square += std::pow(counts[i] - draws * shares[i], 2) / (draws * shares[i]);
  }
  const double freedom = static_cast<double>(counts.size()) - 1, spread = 2 / (9 * freedom);
  return (std::cbrt(chi_square / freedom) - (1 - spread)) / std::sqrt(spread);
}

TEST(Unmasker, AlgTempDrawsPositionsBySoftmaxOfTheScore) {
  const std::vector<Candidate> list{{0, 1, 0.9f}, {1, 1, 0.5f}, {2, 1, 0.4f}, {3, 1, 0.1f}};
  constexpr double kTemp = 0.5;
  std::vector<double> shares;
  for (const Candidate& c : list) shares.push_back(std::exp(c.probability / kTemp));
  const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= total;
  const auto unmasker = unmasker_of("maskgit_plus", {{"alg_temp", kTemp}});
  std::vector<int> counts(4, 0);
  for (uint64_t seed = 0; seed < 20000; ++seed) {
    const auto noise = noise_of(4, seed);
    ++counts[static_cast<size_t>(
        unmasker->choose(list, {0, 4, 4, 4, 4, Schedule::kEven, noise})[0])];
  }
  EXPECT_LT(chi_square_deviation(counts, shares), 4);
}

TEST(Unmasker, OriginAndRandomFavourNoPosition) {
  const std::vector<Candidate> list{{0, 1, 0.9f}, {1, 1, 0.5f}, {2, 1, 0.4f}, {3, 1, 0.1f}};
  for (const char* name : {"random", "origin"}) {
    const auto unmasker = unmasker_of(name);
    std::vector<int> counts(4, 0);
    for (uint64_t seed = 0; seed < 20000; ++seed) {
      const auto noise = noise_of(4, seed);
      for (const int i : unmasker->choose(list, {0, 4, 4, 4, 4, Schedule::kEven, noise})) {
        ++counts[static_cast<size_t>(i)];
      }
    }
    EXPECT_LT(chi_square_deviation(counts, std::vector<double>(4, 0.25)), 4) << name;
    EXPECT_NEAR(std::accumulate(counts.begin(), counts.end(), 0) / 20000.0, 1.0, 0.03) << name;
  }
}

TEST(Unmasker, AnUnknownNameListsTheKnownOnes) {
  DecodeParams params;
  params.algorithm = "nope";
  try {
    make_unmasker(params);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.param(), "algorithm");
    EXPECT_NE(std::string(e.what()).find("low_confidence, random, threshold"), std::string::npos);
  }
}

TEST(Unmasker, ThresholdTakesAllThatReachIt) {
  DecodeParams params;
  params.algorithm = "threshold";
  params.params["threshold"] = 0.5;
  const std::vector<Candidate> list{{0, 1, 0.4f}, {1, 1, 0.5f}, {2, 1, 0.9f}, {3, 1, 0.1f}};
  EXPECT_EQ(make_unmasker(params)->choose(list, {}), (std::vector<int>{1, 2}));
}

/// A decoder driven by a made-up model.
class CanvasDecoderTest : public testing::Test {
 protected:
  CanvasDecoderTest() {
    model.num_layers = 4;
    model.mask_token = 99;
    model.end_tokens = {1};
    request.prompt_ids = {5, 99, 6};  // a mask token in the prompt is just a token
    request.gen_length = 12;
    request.decode.block_length = 4;
    request.decode.steps = 12;
  }

  /// Decodes with `token_at`; probabilities fall from left to right. Returns the forwards.
  int decode(CanvasDecoder& decoder) {
    int num_forwards = 0;
    while (!decoder.finished() && num_forwards < 1000) {
      Forward forward;
      decoder.append_to(forward, 0, prefix);
      forwards.push_back(forward.groups);
      EXPECT_EQ(static_cast<int>(forward.logit_rows.size()), decoder.num_logit_rows());
      std::vector<RowResult> results;
      for (const LogitRow& row : forward.logit_rows) {
        RowResult result;
        result.token = token_at.count(row.row) ? token_at[row.row] : 7;
        result.probability = result.confidence = 1.0f / static_cast<float>(2 + row.row);
        result.entropy = certain.count(row.row) > 0 ? 0.0f : static_cast<float>(2 + row.row);
        results.push_back(result);
      }
      decoder.commit(results);
      for (const DecidedToken& t : decoder.take_final_tokens()) text.push_back(t.token);
      ++num_forwards;
    }
    return num_forwards;
  }

  GenerateRequest request;
  ModelInfo model;
  std::map<int, TokenId> token_at;
  std::set<int> certain;  // rows of entropy 0; that of the others grows from left to right
  std::vector<TokenId> text;
  PrefixStates prefix;
  std::vector<std::vector<RowGroup>> forwards;
};

TEST_F(CanvasDecoderTest, QuotaTakesItsSteps) {
  request.decode.steps = 6;
  CanvasDecoder decoder(request, model, {});
  EXPECT_EQ(decode(decoder), 6);
  EXPECT_EQ(text, std::vector<TokenId>(12, 7));
  EXPECT_EQ(decoder.finish_reason(), FinishReason::kLength);
  EXPECT_EQ(decoder.stats().row_layers, 6 * 15 * 4);
}

TEST_F(CanvasDecoderTest, StepsBeyondTheTokensCostNothingUnlessAsked) {
  request.decode.steps = 30;
  CanvasDecoder decoder(request, model, {});
  EXPECT_EQ(decode(decoder), 12);
  request.decode.run_empty_steps = true;
  CanvasDecoder faithful(request, model, {});
  EXPECT_EQ(decode(faithful), 30);
}

TEST_F(CanvasDecoderTest, ABlockMayBeShorterThanBlockLength) {
  request.gen_length = 10;
  request.decode.steps = 10;
  CanvasDecoder decoder(request, model, {});
  EXPECT_EQ(decode(decoder), 10);
  EXPECT_EQ(text.size(), 10u);
}

/// Blocks of 4 from the canvas's beginning on, and a prompt of 3.
class BlockCausalTest : public CanvasDecoderTest {
 protected:
  BlockCausalTest() {
    model.attention_block = 4;
    request.gen_length = 9;
    request.decode.algorithm = "low_confidence_dynamic";
    request.decode.steps = 9;
  }

  using Rows = std::vector<std::pair<int, int>>;  // begin, and end, which is the last key's too
  std::vector<Rows> rows_of_forwards() const {
    std::vector<Rows> all;
    for (const auto& groups : forwards) {
      Rows& rows = all.emplace_back();
      for (const RowGroup& group : groups) {
        EXPECT_EQ(group.key_end, group.end);
        rows.emplace_back(group.begin, group.end);
      }
    }
    return all;
  }
};

TEST_F(BlockCausalTest, AFinishedBlockRunsOnceMoreBesideTheNext) {
  request.decode.steps = 3;
  request.decode.params = {{"threshold", 0.9}};
  CanvasDecoder decoder(request, model, {});
  decode(decoder);
  // Two steps a block: the first holds one mask, so one is enough there.
  EXPECT_EQ(
      rows_of_forwards(),
      (std::vector<Rows>{{{0, 4}}, {{0, 4}, {4, 8}}, {{4, 8}}, {{4, 8}, {8, 12}}, {{8, 12}}}));
  EXPECT_EQ(text.size(), 9u);
  EXPECT_EQ(decoder.finish_reason(), FinishReason::kLength);
}

TEST_F(BlockCausalTest, AStoredPrefixNeverRuns) {
  request.prompt_ids = {5, 99, 6, 5, 5, 6, 6, 5, 5};
  request.gen_length = 3;
  request.decode.steps = 3;
  CanvasDecoder decoder(request, model, reuse_of(4, 4, 0, 1, 1));
  decode(decoder);
  EXPECT_EQ(rows_of_forwards(), (std::vector<Rows>{{{4, 8}, {8, 12}}, {{8, 12}}, {{8, 12}}}));
  EXPECT_EQ(decoder.stats().num_refreshes, 1);
}

TEST_F(BlockCausalTest, TheTextIsNoLongerThanAskedForThoughBlocksAreDecidedWhole) {
  request.max_text = 6;
  CanvasDecoder decoder(request, model, {});
  decode(decoder);
  EXPECT_EQ(text.size(), 6u);
  EXPECT_EQ(decoder.finish_reason(), FinishReason::kLength);
}

TEST_F(BlockCausalTest, QuotasAreThoseOfAWholeBlock) {
  request.prompt_ids = {5, 6};
  request.gen_length = 6;
  request.decode.steps = 3;  // two steps for a block of four, two positions each
  CanvasDecoder decoder(request, model, {});
  EXPECT_EQ(decode(decoder), 3);
}

/// What a model that changes its mind makes of a block.
TEST_F(BlockCausalTest, RevisedTokensAreTextOnlyWhenTheirBlockIsFinal) {
  request.prompt_ids = {5, 5, 5, 5};
  request.gen_length = 8;
  request.decode.algorithm = "joint_threshold";
  CanvasDecoder decoder(request, model, {});
  std::vector<size_t> text_after;
  for (int i = 0; !decoder.finished() && i < 20; ++i) {
    Forward forward;
    decoder.append_to(forward, 0, {});
    forwards.push_back(forward.groups);
    ASSERT_EQ(forward.logit_rows.size(), 4u) << "decided positions are looked at, too";
    std::vector<RowResult> results;
    for (const LogitRow& row : forward.logit_rows) {
      RowResult& result = results.emplace_back();
      result.token = i == 1 && row.row == 5 ? 8 : i >= 2 && row.row == 5 ? 8 : 7;
      result.probability = result.confidence = 0.95f;
    }
    decoder.commit(results);
    for (const DecidedToken& t : decoder.take_final_tokens()) text.push_back(t.token);
    text_after.push_back(text.size());
  }
  // All four, a revision, nothing; all four, nothing.
  EXPECT_EQ(text_after, (std::vector<size_t>{0, 0, 4, 4, 8}));
  EXPECT_EQ(text, (std::vector<TokenId>{7, 8, 7, 7, 7, 7, 7, 7}));
  // The forward that revised nothing left the block's keys and values.
  EXPECT_EQ(rows_of_forwards(),
            (std::vector<Rows>{{{0, 4}, {4, 8}}, {{4, 8}}, {{4, 8}}, {{8, 12}}, {{8, 12}}}));
}

TEST_F(BlockCausalTest, RevisionsEndAfterTheirRounds) {
  request.prompt_ids = {5, 5, 5, 5};
  request.gen_length = 4;
  request.decode.algorithm = "joint_threshold";
  request.decode.params = {{"max_edit_rounds", 3}};
  CanvasDecoder decoder(request, model, {});
  int num_forwards = 0;
  for (; !decoder.finished() && num_forwards < 20; ++num_forwards) {
    std::vector<RowResult> results(4);
    for (RowResult& result : results) {
      result.token = 7 + num_forwards % 2;
      result.probability = result.confidence = 0.95f;
    }
    decoder.commit(results);
  }
  EXPECT_EQ(num_forwards, 4);
}

TEST_F(CanvasDecoderTest, StopsAtTheEndTokenOnceAllBeforeItIsDecided) {
  token_at[3 + 5] = 1;
  CanvasDecoder decoder(request, model, {});
  EXPECT_EQ(decode(decoder), 6);
  EXPECT_EQ(text.size(), 5u);
  EXPECT_EQ(decoder.finish_reason(), FinishReason::kStop);
  EXPECT_EQ(decoder.stats().completion_tokens, 5);
}

TEST_F(CanvasDecoderTest, WithoutEarlyStopDecodesAllAndCutsTheText) {
  token_at[3 + 5] = 1;
  request.decode.eos_early_stop = false;
  CanvasDecoder decoder(request, model, {});
  EXPECT_EQ(decode(decoder), 12);
  EXPECT_EQ(text.size(), 5u);
  EXPECT_EQ(decoder.finish_reason(), FinishReason::kStop);
}

TEST_F(CanvasDecoderTest, BlocksOpenBesideOneThatIsPartlyDecided) {
  request.decode.algorithm = "entropy_multi_block";
  request.decode.params = {{"entropy_threshold", 0.5}, {"block_add_threshold", 0.5}};
  Reuse reuse;
  reuse.intra_cache = IntraCache::kDual;
  certain = {5, 6, 9};  // half of block [3, 7), one of [7, 11)
  CanvasDecoder decoder(request, model, reuse);
  EXPECT_EQ(std::pair(decoder.block_begin(), decoder.block_end()), std::pair(3, 7));
  const auto step = [&] {
    Forward forward;
    decoder.append_to(forward, 0, {});
    std::vector<RowResult> results;
    for (const LogitRow& row : forward.logit_rows) {
      results.emplace_back().token = 7;
      results.back().probability = results.back().confidence = 0.5f;
      results.back().entropy = certain.count(row.row) > 0 ? 0.0f : static_cast<float>(2 + row.row);
    }
    decoder.commit(results);
  };
  step();  // 5 and 6
  EXPECT_EQ(std::pair(decoder.block_begin(), decoder.block_end()), std::pair(3, 11));
  EXPECT_EQ(decoder.open_positions(), (std::vector<int>{3, 4, 7, 8, 9, 10}));
  EXPECT_EQ(decoder.next().groups.size(), 1u);
  EXPECT_EQ(decoder.next().groups[0].end, 11);
  step();  // 9, and 3 as the first block's
  EXPECT_EQ(decoder.open_positions(), (std::vector<int>{4, 7, 8, 10}));
  EXPECT_EQ(decoder.block_end(), 11) << "a quarter of the second block is decided";
  step();  // 4: the first block is done, and what follows it runs whole
  EXPECT_EQ(std::pair(decoder.block_begin(), decoder.block_end()), std::pair(7, 11));
  EXPECT_EQ(decoder.next().groups[0].end, 15);
  EXPECT_FALSE(decoder.next().in_block);
}

TEST_F(CanvasDecoderTest, WithSeveralBlocksWhatFollowsAnEndIsNotDecoded) {
  request.decode.algorithm = "entropy_multi_block";
  request.decode.params = {{"entropy_threshold", 0.5}, {"block_add_threshold", 0.1}};
  token_at[8] = 1;
  certain = {3, 8};
  CanvasDecoder decoder(request, model, {});
  // 3; then 4 and the end, behind which nothing is open; then 5, 6, 7.
  EXPECT_EQ(decode(decoder), 5);
  EXPECT_EQ(text, std::vector<TokenId>(5, 7));
  EXPECT_EQ(decoder.canvas().token(14), 1);
  EXPECT_EQ(decoder.finish_reason(), FinishReason::kStop);

  request.decode.eos_early_stop = false;
  text.clear();
  CanvasDecoder faithful(request, model, {});
  decode(faithful);
  EXPECT_EQ(text, std::vector<TokenId>(5, 7));
  EXPECT_EQ(faithful.canvas().token(14), 7);
}

TEST_F(CanvasDecoderTest, SuffixStandsBehindTheMasksAndIsNeverTouched) {
  request.suffix_ids = {8, 9};
  CanvasDecoder decoder(request, model, {});
  decode(decoder);
  EXPECT_EQ(decoder.canvas().token(15), 8);
  EXPECT_EQ(decoder.canvas().token(16), 9);
  EXPECT_EQ(decoder.canvas().token(1), 99);
}

TEST_F(CanvasDecoderTest, AShiftOfTheLogitsRunsTheRowBeforeTheBlockWhileItIsNeeded) {
  model.logits_shift = 1;
  Reuse reuse;
  reuse.intra_cache = IntraCache::kDual;
  CanvasDecoder decoder(request, model, reuse);
  EXPECT_EQ(decode(decoder), 12);
  // Probabilities fall from left to right, so that the first step decides the first position.
  EXPECT_EQ(forwards[1][0].begin, 3);
  EXPECT_EQ(forwards[1][0].end, 7);
}

TEST_F(CanvasDecoderTest, APrefixThatEndsAtTheBlockKeepsItsLastRow) {
  model.logits_shift = 1;
  prefix = {40, 41};
  CanvasDecoder decoder(request, model, reuse_of(3, 2, 2, 100, 100));
  EXPECT_EQ(decode(decoder), 12);
  ASSERT_EQ(forwards[0].size(), 2u);
  EXPECT_EQ(forwards[0][0].end, 2);
  EXPECT_EQ(forwards[0][1].begin, 2);
}

TEST_F(CanvasDecoderTest, AGuideIsTheCanvasWithoutPromptAndSuffix) {
  request.decode.cfg_scale = 1.5f;
  request.suffix_ids = {8};
  CanvasDecoder decoder(request, model, reuse_of(2, 1, 1, 100, 3));
  Forward forward;
  decoder.append_to(forward, {0, 1}, {40});
  ASSERT_EQ(forward.groups.size(), 3u);
  const RowGroup& guide = forward.groups[2];
  EXPECT_EQ(guide.slab, 1);
  EXPECT_EQ(guide.tokens, std::vector<TokenId>(16, 99));
  ASSERT_EQ(static_cast<int>(forward.logit_rows.size()), decoder.num_logit_rows());
  ASSERT_EQ(forward.logit_rows.size(), 8u);
  EXPECT_FLOAT_EQ(forward.logit_rows[0].guidance, 2.5f);
  EXPECT_EQ(forward.logit_rows[1].guidance, 0.0f);
  EXPECT_EQ(forward.logit_rows[1].group, 2);
  EXPECT_EQ(forward.logit_rows[1].row, forward.logit_rows[0].row);
  std::vector<RowResult> results(8);
  for (size_t i = 0; i < 8; ++i) {
    results[i].token = i % 2 == 0 ? 7 : 50;  // that of a guide means nothing
    results[i].confidence = 0.5f;
  }
  decoder.commit(results);
  EXPECT_EQ(decoder.canvas().token(3), 7);
  Forward second;
  decoder.append_to(second, {0, 1}, {40});
  EXPECT_EQ(second.groups.back().tokens[3], 7) << "what is decided stands on both";
}

TEST_F(CanvasDecoderTest, EndTokensAreKeptBackAsAsked) {
  model.end_tokens = {1, 2};
  const auto row_of = [&] {
    CanvasDecoder decoder(request, model, {});
    Forward forward;
    decoder.append_to(forward, 0, {});
    const LogitRow& row = forward.logit_rows[0];
    return std::pair(std::vector<TokenId>(row.never.begin(), row.never.end()),
                     std::vector<TokenId>(row.discounted.begin(), row.discounted.end()));
  };
  using Tokens = std::vector<TokenId>;
  EXPECT_EQ(row_of(), std::pair(Tokens{}, Tokens{}));
  request.decode.logits_eos_inf = true;
  EXPECT_EQ(row_of().first, Tokens{1}) << "EOS alone";
  request.decode.ignore_eos = true;
  EXPECT_EQ(row_of().first, (Tokens{1, 2}));
  request.decode.confidence_eos_eot_inf = true;
  EXPECT_EQ(row_of().second, (Tokens{1, 2}));
  request.sampling.temperature = 1;
  EXPECT_EQ(row_of().second, Tokens{2});
}

/// What penalties count, against a count of the canvas: given tokens for repetition, decided ones
/// for all three, each position once and never the end tokens.
TEST_F(CanvasDecoderTest, PenaltiesCountTheTokensOfTheCanvas) {
  request.suffix_ids = {8};
  token_at = {{4, 8}, {6, 8}, {7, 5}, {9, 1}};
  request.decode.eos_early_stop = false;
  for (const float repetition : {1.0f, 1.2f}) {
    request.sampling.repetition_penalty = repetition;
    request.sampling.frequency_penalty = 0.5f;
    CanvasDecoder decoder(request, model, {});
    for (int i = 0; !decoder.finished() && i < 100; ++i) {
      Forward forward;
      decoder.append_to(forward, 0, {});
      std::map<TokenId, std::pair<int, bool>> want;  // how often decided, whether given
      const Canvas& canvas = decoder.canvas();
      for (int at = 0; at < canvas.length(); ++at) {
        if (canvas.is_masked(at)) continue;
        if (canvas.is_given(at)) {
          if (repetition != 1) want[canvas.token(at)].second = true;
        } else if (canvas.token(at) != 1) {
          ++want[canvas.token(at)].first;
        }
      }
      std::vector<RowResult> results;
      for (const LogitRow& row : forward.logit_rows) {
        std::map<TokenId, std::pair<int, bool>> got;
        for (const CountedToken& c : row.counted) got[c.token] = {c.num_decided, c.is_given};
        EXPECT_EQ(got, want);
        EXPECT_EQ(row.counted.size(), want.size()) << "each token once";
        EXPECT_EQ(row.current, kNoToken);
        results.emplace_back();
        results.back().token = token_at.count(row.row) ? token_at[row.row] : 7;
        results.back().probability = results.back().confidence = 0.5f;
      }
      decoder.commit(results);
    }
    EXPECT_TRUE(decoder.finished());
  }
}

TEST_F(BlockCausalTest, RulesHoldForRevisionsToo) {
  request.prompt_ids = {5, 5, 5, 8};
  request.gen_length = 4;
  request.decode.algorithm = "joint_threshold";
  request.sampling.repetition_penalty = 1.5f;
  request.decode.bad_words = {{7, 9}, {6}};
  request.decode.min_tokens = 2;
  CanvasDecoder decoder(request, model, {});
  const auto step = [&](std::vector<TokenId> tokens) {
    std::vector<RowResult> results;
    for (const TokenId token : tokens) {
      results.emplace_back();
      results.back().token = token;
      results.back().probability = results.back().confidence = 0.95f;
    }
    decoder.commit(results);
  };
  Forward forward;
  const auto rows = [&] {
    forward = {};
    decoder.append_to(forward, 0, {});
    return forward.logit_rows;
  };
  const auto never = [](const LogitRow& row) {
    return std::vector<TokenId>(row.never_here.begin(), row.never_here.end());
  };
  const auto counted = [](const LogitRow& row, TokenId token) {
    for (const CountedToken& c : row.counted) {
      if (c.token == token) return std::pair(c.num_decided, c.is_given);
    }
    return std::pair(-1, false);
  };
  step({7, 8, 7, 7});
  EXPECT_EQ(rows()[0].current, 7);
  EXPECT_EQ(never(rows()[0]), (std::vector<TokenId>{1, 6})) << "no end at the first two";
  EXPECT_EQ(never(rows()[1]), (std::vector<TokenId>{1, 9, 6})) << "behind a 7";
  EXPECT_EQ(never(rows()[2]), (std::vector<TokenId>{6}));
  EXPECT_EQ(counted(rows()[0], 8), std::pair(1, true));
  step({7, 3, 7, 7});
  EXPECT_EQ(counted(rows()[0], 8), std::pair(0, true)) << "the prompt still has it";
  EXPECT_EQ(counted(rows()[0], 3), std::pair(1, false));
  step({7, kNoToken, 7, 7});
  EXPECT_TRUE(decoder.finished()) << "where nothing else may stand what stands there stays";
}

TEST_F(CanvasDecoderTest, APositionThatNoTokenMayTakeEndsTheRequest) {
  CanvasDecoder decoder(request, model, {});
  std::vector<RowResult> results(4);
  for (RowResult& result : results) result.token = 7;
  results[2].token = kNoToken;
  try {
    decoder.commit(results);
    FAIL() << "it went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidRequest);
    EXPECT_NE(std::string(error.what()).find("position 2 of the answer"), std::string::npos);
  }
}

TEST_F(CanvasDecoderTest, TheEndTokenIsToldToThoseWhoWantIt) {
  token_at[3 + 5] = 1;
  request.wants_end = true;
  CanvasDecoder decoder(request, model, {});
  decode(decoder);
  EXPECT_EQ(text, (std::vector<TokenId>{7, 7, 7, 7, 7, 1}));
  EXPECT_EQ(decoder.stats().completion_tokens, 5);
}

TEST_F(CanvasDecoderTest, DiscardingTheFirstForwardCostsOneABlock) {
  Reuse reuse;
  reuse.intra_cache = IntraCache::kDual;
  CanvasDecoder use(request, model, reuse);
  EXPECT_EQ(decode(use), 12);
  request.decode.first_forward = FirstForward::kDiscarded;
  CanvasDecoder discard(request, model, reuse);
  EXPECT_EQ(decode(discard), 15);
}

TEST_F(CanvasDecoderTest, RefreshesByCommitsOrForwardsWhicheverComesFirst) {
  CanvasDecoder by_commits(request, model, reuse_of(2, 1, 1, 100, 3));
  decode(by_commits);
  EXPECT_EQ(by_commits.stats().num_refreshes, 4);
  CanvasDecoder by_forwards(request, model, reuse_of(2, 1, 1, 2, 3));
  decode(by_forwards);
  EXPECT_EQ(by_forwards.stats().num_refreshes, 6);
}

TEST_F(CanvasDecoderTest, EndTokensMakeNoRefreshDue) {
  request.decode.eos_early_stop = false;
  for (int position = 3 + 6; position < 3 + 12; ++position) token_at[position] = 1;
  CanvasDecoder decoder(request, model, reuse_of(2, 1, 1, 100, 2));
  EXPECT_EQ(decode(decoder), 12);
  EXPECT_EQ(decoder.stats().num_refreshes, 4) << "the first, and after 2, 4 and 6 text tokens";
}

TEST_F(CanvasDecoderTest, RefreshesEnterWhereTheFirstForwardLeftItsStates) {
  prefix = {40, 41};
  const Reuse reuse = reuse_of(2, 1, 3, 100, 6);
  EXPECT_EQ(reuse.own_states(15, model.num_layers), 2);
  CanvasDecoder decoder(request, model, reuse);
  EXPECT_EQ(decode(decoder), 12);
  EXPECT_EQ(decoder.stats().num_refreshes, 2);
  ASSERT_EQ(forwards[0].size(), 2u);
  EXPECT_EQ(forwards[0][0].enter_layer, 1);
  EXPECT_EQ(forwards[0][0].enter_from, 40);
  EXPECT_EQ(forwards[0][0].capture_to, 41);
  EXPECT_EQ(forwards[0][1].capture_to, kNoId);
  EXPECT_EQ(forwards[1].size(), 1u);
  ASSERT_EQ(forwards[6].size(), 2u);
  EXPECT_EQ(forwards[6][0].enter_layer, 3);
  EXPECT_EQ(forwards[6][0].enter_from, 41);
  EXPECT_EQ(forwards[6][0].capture_to, kNoId);
}

TEST_F(CanvasDecoderTest, ARefreshDepthOfAllLayersRunsThePrefixOnce) {
  const Reuse reuse = reuse_of(2, 0, 4, 100, 1);
  EXPECT_EQ(reuse.own_states(15, model.num_layers), 0);
  CanvasDecoder decoder(request, model, reuse);
  EXPECT_EQ(decode(decoder), 12);
  EXPECT_EQ(decoder.stats().row_layers, 4 * (15 + 11 * 13));
}

TEST_F(CanvasDecoderTest, AdaptiveRunsAllOnlyAfterText) {
  request.decode.eos_early_stop = false;
  for (int position = 3 + 6; position < 3 + 12; ++position) token_at[position] = 1;
  Reuse reuse;
  reuse.intra_cache = IntraCache::kAdaptive;
  reuse.refresh_interval = 16;
  CanvasDecoder decoder(request, model, reuse);
  EXPECT_EQ(decode(decoder), 12);
  EXPECT_EQ(decoder.stats().num_refreshes, 7) << "the first, and after each of 6 text tokens";
  EXPECT_EQ(decoder.stats().row_layers, 4 * (7 * 15 + 5 * 4));
}

TEST_F(CanvasDecoderTest, AdaptiveRunsAllAfterTheIntervalToo) {
  request.decode.eos_early_stop = false;
  for (int position = 3; position < 3 + 12; ++position) token_at[position] = 1;
  Reuse reuse;
  reuse.intra_cache = IntraCache::kAdaptive;
  reuse.refresh_interval = 5;
  CanvasDecoder decoder(request, model, reuse);
  EXPECT_EQ(decode(decoder), 12);
  EXPECT_EQ(decoder.stats().num_refreshes, 3);
}

TEST_F(CanvasDecoderTest, CommitOfTheMaskTokenIsADefect) {
  Canvas canvas(request, model.mask_token);
  EXPECT_THROW(canvas.commit(3, 99), Error);
  EXPECT_THROW(canvas.commit(1, 7), Error);
  canvas.commit(3, 7);
  EXPECT_THROW(canvas.commit(3, 7), Error);
}

}  // namespace
}  // namespace bicached
