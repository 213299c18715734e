#include "decode/decoder_fixture.h"

namespace bicached {
namespace {

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

}  // namespace
}  // namespace bicached
