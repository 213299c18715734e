// What a probe sees, by forwards whose results are written down.
#include "decode/shadow.h"

#include <gtest/gtest.h>

#include "bicached/unmasker.h"
#include "decode/noise.h"

namespace bicached {
namespace {

/// A result for each position of the answer, of which forwards take those that are open.
struct Made {
  TokenId token;
  float probability;
};
using Row = std::vector<Made>;

/// A request for four tokens. Unless a test says otherwise, each forward decides the most probable
/// one.
class ShadowTest : public testing::Test {
 protected:
  ShadowTest() {
    model.num_layers = 4;
    model.mask_token = 99;
    model.vocab_size = model.num_logits = 100;
    request.prompt_ids = {5, 6};
    request.gen_length = request.decode.block_length = request.decode.steps = 4;
    request.decode.algorithm = "low_confidence";
  }

  /// Forwards of both, until the request is decided.
  void run(const std::vector<Row>& of_request, const std::vector<Row>& of_plan) {
    CanvasDecoder decoder(request, model, {});
    shadow.emplace(request, model, Reuse{}, Lease(1, [](int64_t) {}), PrefixStates{}, course);
    for (size_t i = 0; i < of_request.size(); ++i) {
      Forward forward, other;
      decoder.append_to(forward, 0, {});
      shadow->append_to(other);
      const auto own = results(forward, of_request[i]);
      decoder.commit(own);
      shadow->advance(results(other, of_plan[i]), own, decoder.last_commits());
    }
    ASSERT_TRUE(decoder.finished());
    shadow->conclude();
  }

  static std::vector<RowResult> results(const Forward& forward, const Row& made) {
    std::vector<RowResult> list;
    for (const LogitRow& logit_row : forward.logit_rows) {
      const auto position = static_cast<size_t>(logit_row.row) - 2;
      RowResult& result = list.emplace_back();
      result.token = made[position].token;
      result.probability = result.confidence = made[position].probability;
    }
    return list;
  }

  ModelInfo model;
  GenerateRequest request;
  Shadow::Course course = Shadow::Course::kOwn;
  std::optional<Shadow> shadow;
};

const Row kFirst{{10, 0.9f}, {11, 0.8f}, {12, 0.7f}, {13, 0.6f}};   // decides 10, 11, 12, 13
const Row kSecond{{10, 0.8f}, {11, 0.9f}, {12, 0.7f}, {13, 0.6f}};  // decides 11, 10, 12, 13

TEST_F(ShadowTest, TheSameTokensInAnotherOrderAgree) {
  run({kFirst, kFirst, kFirst, kFirst}, {kSecond, kSecond, kSecond, kSecond});
  EXPECT_TRUE(shadow->agrees());
  EXPECT_GE(shadow->num_checks(), 4);
}

TEST_F(ShadowTest, AnotherOrderThatLeadsElsewhereIsADifference) {
  // Whatever one decides, the other would decide there; but the plan, once it has 11, says 20.
  const Row astray{{20, 0.8f}, {11, 0.9f}, {12, 0.7f}, {13, 0.6f}};
  run({kFirst, kFirst, kFirst, kFirst}, {kSecond, astray, astray, astray});
  EXPECT_FALSE(shadow->agrees());
}

TEST_F(ShadowTest, AnotherTokenOfWhichBothAreSureIsADifferenceAtOnce) {
  const Row other{{20, 0.8f}, {11, 0.9f}, {12, 0.7f}, {13, 0.6f}};
  run({kFirst, kFirst, kFirst, kFirst}, {other, other, other, other});
  EXPECT_FALSE(shadow->agrees());
  EXPECT_EQ(shadow->stats().num_forwards, 1);
}

TEST_F(ShadowTest, WhatThePlanHasNotDecidedCountsAsItStands) {
  request.decode.algorithm = "threshold";
  const Row three{{10, 0.95f}, {11, 0.95f}, {12, 0.95f}, {13, 0.6f}};
  const Row two{{10, 0.95f}, {11, 0.95f}, {12, 0.6f}, {13, 0.7f}};
  for (const TokenId token : {12, 20}) {
    Row last = two;
    last[2].token = token;
    run({three, three}, {two, last});
    EXPECT_TRUE(shadow->is_running());
    EXPECT_EQ(shadow->agrees(), token == 12);
  }
}

TEST_F(ShadowTest, ATokenOfLittleProbabilityCountsOnceBothHaveDecided) {
  const Row unsure{{10, 0.9f}, {11, 0.8f}, {12, 0.7f}, {13, 0.4f}};
  const Row other{{10, 0.9f}, {11, 0.8f}, {12, 0.7f}, {20, 0.4f}};
  run({unsure, unsure, unsure, unsure}, {other, other, other, unsure});
  EXPECT_TRUE(shadow->agrees()) << "what it would have put there before";
  run({unsure, unsure, unsure, unsure}, {other, other, other, other});
  EXPECT_FALSE(shadow->agrees());
  course = Shadow::Course::kOfRequest;
  run({unsure, unsure, unsure, unsure}, {other, other, other, other});
  EXPECT_TRUE(shadow->agrees()) << "one that follows is about tokens of which both are sure";
}

TEST_F(ShadowTest, EveryAlgorithmMayTakeItsOwnCourse) {
  request.gen_length = 30;
  request.decode.block_length = 8;
  request.decode.steps = 12;
  const auto results_by = [](const Forward& forward, uint64_t seed, int num_forwards, bool strays) {
    std::vector<RowResult> list;
    for (const LogitRow& row : forward.logit_rows) {
      const double u = counter_uniform(seed, static_cast<uint64_t>(num_forwards),
                                       static_cast<uint64_t>(row.row));
      RowResult& result = list.emplace_back();
      result.token = 10 + row.row + (strays && row.row == 20 ? 1 : 0);
      result.probability = result.confidence = static_cast<float>(0.55 + 0.45 * u);
      result.margin = static_cast<float>(u / 2);
      result.entropy = static_cast<float>(1 - u);
      result.divergence = static_cast<float>(u / 20);
    }
    return list;
  };
  for (const std::string& name : unmasker_names()) {
    request.decode.algorithm = name;
    for (const bool strays : {false, true}) {
      int num_known = 0;
      for (uint64_t seed = 0; seed < 20; ++seed) {
        CanvasDecoder decoder(request, model, {});
        Shadow own(request, model, {}, Lease(1, [](int64_t) {}), {}, Shadow::Course::kOwn);
        for (int i = 0; !decoder.finished() && i < 200; ++i) {
          Forward forward, other;
          decoder.append_to(forward, 0, {});
          own.append_to(other);
          const auto of_request = results_by(forward, seed, i, false);
          decoder.commit(of_request);
          own.advance(results_by(other, seed + 1000, i, strays), of_request,
                      decoder.last_commits());
        }
        ASSERT_TRUE(decoder.finished()) << name;
        own.conclude();
        EXPECT_EQ(own.agrees(), !strays) << name << ", seed " << seed;
        num_known += own.num_checks() > 0 ? 1 : 0;
      }
      EXPECT_GT(num_known, 15) << name << ": few end before their plan has come as far";
    }
  }
}

TEST_F(ShadowTest, OneThatFollowsSeesWhatItWouldDecideThere) {
  course = Shadow::Course::kOfRequest;
  // The plan would put 20 where the request has 10 already.
  const Row astray{{20, 0.8f}, {11, 0.9f}, {12, 0.7f}, {13, 0.6f}};
  const Row unsure{{20, 0.3f}, {11, 0.2f}, {12, 0.2f}, {13, 0.2f}};
  for (const float temperature : {0.0f, 1.0f}) {
    request.sampling.temperature = temperature;
    run({kFirst, kFirst, kFirst, kFirst}, {kSecond, astray, astray, astray});
    EXPECT_TRUE(shadow->agrees());
    run({kFirst, kFirst, kFirst, kFirst}, {unsure, unsure, unsure, unsure});
    EXPECT_FALSE(shadow->agrees()) << "of a token over one half it is not sure";
  }
}

TEST_F(ShadowTest, ARequestThatDrawsIsFollowed) {
  request.sampling.temperature = 1;
  const Row astray{{20, 0.8f}, {11, 0.9f}, {12, 0.7f}, {13, 0.6f}};
  run({kFirst, kFirst, kFirst, kFirst}, {kSecond, astray, astray, astray});
  EXPECT_TRUE(shadow->agrees());
}

}  // namespace
}  // namespace bicached
