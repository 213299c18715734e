#include <gtest/gtest.h>

#include <cmath>
#include <map>

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
  state.logits_shift = 1;
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
  state.logits_shift = 1;
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
  state.logits_shift = 1;
  EXPECT_EQ(spans_of(state), (Spans{{0, 49, 5}, {49, 70, 0}, {70, 100, 5}}));
  state.reuse.depth = 6;
  EXPECT_EQ(spans_of(state), (Spans{{0, 40, 6}, {40, 49, 5}, {49, 70, 0}, {70, 100, 5}}));
  state.reuse.refresh_depth = 0;
  EXPECT_EQ(spans_of(state), (Spans{{0, 40, 6}, {40, 100, 0}}));
  state.reuse.refresh_depth = 8;
  EXPECT_EQ(spans_of(state), (Spans{{49, 70, 0}})) << "nothing outside runs again";
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

/// Every algorithm of the table keeps these promises.
class UnmaskerContract : public testing::TestWithParam<std::string> {
 protected:
  static std::vector<Candidate> candidates(int count, uint64_t seed) {
    std::vector<Candidate> list;
    for (int i = 0; i < count; ++i) {
      const auto u = static_cast<float>(counter_uniform(seed, 0, static_cast<uint64_t>(i)));
      list.push_back({10 + i, i, u, u / 2, 1 - u});
    }
    return list;
  }
};

TEST_P(UnmaskerContract, ChoosesAscendingValidIndicesAndIsDeterministic) {
  DecodeParams params;
  params.algorithm = GetParam();
  const auto unmasker = make_unmasker(params);
  for (int count = 1; count < 40; ++count) {
    const auto list = candidates(count, static_cast<uint64_t>(count));
    const BlockProgress progress{0, 4, count};
    const std::vector<int> chosen = unmasker->choose(list, progress);
    EXPECT_EQ(chosen, unmasker->choose(list, progress));
    EXPECT_GE(static_cast<int>(chosen.size()), std::min(count, unmasker->min_choices(progress)));
    for (size_t i = 0; i < chosen.size(); ++i) {
      EXPECT_GE(chosen[i], i == 0 ? 0 : chosen[i - 1] + 1);
      EXPECT_LT(chosen[i], count);
    }
  }
}

TEST_P(UnmaskerContract, TiesGoToTheLowestPosition) {
  DecodeParams params;
  params.algorithm = GetParam();
  const std::vector<Candidate> equal(5, Candidate{0, 1, 0.5f, 0.1f, 1.0f});
  EXPECT_EQ(make_unmasker(params)->choose(equal, {0, 5, 5}), std::vector<int>{0});
}

INSTANTIATE_TEST_SUITE_P(All, UnmaskerContract, testing::ValuesIn(unmasker_names()));

TEST(Unmasker, AnUnknownNameListsTheKnownOnes) {
  DecodeParams params;
  params.algorithm = "nope";
  try {
    make_unmasker(params);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.param(), "algorithm");
    EXPECT_NE(std::string(e.what()).find("low_confidence, threshold, factor"), std::string::npos);
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
        result.probability = 1.0f / static_cast<float>(2 + row.row);
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

TEST_F(CanvasDecoderTest, SuffixStandsBehindTheMasksAndIsNeverTouched) {
  request.suffix_ids = {8, 9};
  CanvasDecoder decoder(request, model, {});
  decode(decoder);
  EXPECT_EQ(decoder.canvas().token(15), 8);
  EXPECT_EQ(decoder.canvas().token(16), 9);
  EXPECT_EQ(decoder.canvas().token(1), 99);
}

TEST_F(CanvasDecoderTest, DiscardingTheFirstForwardCostsOneABlock) {
  Reuse reuse;
  reuse.intra_cache = IntraCache::kDual;
  CanvasDecoder use(request, model, reuse);
  EXPECT_EQ(decode(use), 12);
  request.decode.use_first_forward = false;
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
