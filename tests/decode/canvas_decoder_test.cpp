#include "bicached/error.h"
#include "decode/decoder_fixture.h"

namespace bicached {
namespace {

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
