#include "bicached/depth_policy.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "bicached/error.h"

namespace bicached {
namespace {

LadderStep step_of(int value, Tally own, Tally others = {}) {
  return {value, own, {own.bad + others.bad, own.num + others.num}, {others}};
}

/// Every policy of the table keeps these promises.
class DepthPolicyContract : public testing::TestWithParam<std::string> {};

TEST_P(DepthPolicyContract, StaysInRangeAndIsZeroWhenNothingIsShared) {
  DepthTable table{"m", 12, {{0, 1}, {50, 7}, {99, 12}}};
  for (const int fixed : {0, 3, 12, 4000}) {
    const auto policy = make_depth_policy(GetParam(), {fixed, &table, 0.05});
    for (const int prefix_len : {0, 1, 50, 99, 100}) {
      PrefixUse use{prefix_len, 100, 12, {6, 12}, {}};
      for (const double bad : {0.0, 5.0}) {
        use.probes = {step_of(6, {0, 50}), step_of(12, {bad, 50})};
        const int depth = policy->choose(use);
        EXPECT_GE(depth, 0);

        EXPECT_LE(depth, prefix_len == 0 ? 0 : 12);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, DepthPolicyContract, testing::ValuesIn(depth_policy_names()));

TEST(DepthPolicy, UnknownNamesAndAMissingTableAreRefused) {
  for (const char* name : {"nope", "table", ""}) {
    try {
      make_depth_policy(name, {});
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidRequest);
      EXPECT_EQ(error.param(), "cache.policy");
    }
  }
}

TEST(DepthPolicy, RatioIsRoundedHalfToEven) {
  EXPECT_EQ(ratio_percent(1, 8), 12);
  EXPECT_EQ(ratio_percent(3, 8), 38);
  EXPECT_EQ(ratio_percent(57, 200), 28);
  EXPECT_EQ(ratio_percent(700, 1056), 66);
}

TEST(DepthPolicy, TableIsAStepFunction) {
  const DepthTable table{"m", 12, {{10, 2}, {50, 7}}};
  EXPECT_EQ(table.depth_at(9), 0);
  EXPECT_EQ(table.depth_at(10), 2);
  EXPECT_EQ(table.depth_at(49), 2);
  EXPECT_EQ(table.depth_at(100), 7);
}

TEST(DepthPolicy, PublishedTablesLoad) {
  const std::string folder = std::string(BICACHED_SOURCE_DIR) + "/configs/depth/";
  const DepthTable llada = DepthTable::load(folder + "llada-8b-instruct.json");
  EXPECT_EQ(llada.num_layers, 32);
  EXPECT_EQ(llada.depth_at(0), 1);
  EXPECT_EQ(llada.depth_at(66), 14);
  EXPECT_EQ(DepthTable::load(folder + "dream-v0-instruct-7b.json").num_layers, 28);
}

TEST(DepthPolicy, BrokenTablesNameTheKey) {
  const auto path = std::filesystem::temp_directory_path() / "bicached_depth_table_test.json";
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"[]", "object"},
      {R"({"num_layers": 0, "steps": []})", "num_layers"},
      {R"({"num_layers": 4})", "steps"},
      {R"({"num_layers": 4, "steps": [{"min_ratio_percent": 0}]})", "steps[0].depth"},
      {R"({"num_layers": 4, "steps": [{"min_ratio_percent": 0, "depth": 5}]})", "0 to 4"},
      {R"({"num_layers": 4, "steps": [{"min_ratio_percent": 3, "depth": 1},
           {"min_ratio_percent": 3, "depth": 1}]})",
       "steps[1].min_ratio_percent"},
      {R"({"num_layers": 4, "steps": [{"min_ratio_percent": 101, "depth": 1}]})", "0 to 100"},
      {"{", "depth_table_test"},
  };
  for (const auto& [text, want] : cases) {
    std::ofstream(path) << text;
    try {
      DepthTable::load(path.string());
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidSettings);
      EXPECT_NE(std::string(error.what()).find(want), std::string::npos) << error.what();
    }
  }
  std::filesystem::remove(path);
}

TEST(Ladder, KnowsNothingAtFirst) {
  EXPECT_EQ(estimated_disagreement({}), 0.5);
  const std::vector<LadderStep> ladder = {step_of(2, {}), step_of(4, {})};
  EXPECT_EQ(greatest_safe(ladder, 0.05), 0);
}

TEST(Ladder, NearRelativesSpeakBeforeTheRest) {
  LadderStep step;
  step.relatives = {{40, 60}, {0, 12}};  // the rest; those that begin alike
  EXPECT_LT(estimated_disagreement(step), 0.02);
  step.own = {1, 1};
  EXPECT_GT(estimated_disagreement(step), 0.05);
  step.own = {0, 8};  // enough to speak for itself
  step.relatives = {{40, 60}, {5, 10}};
  EXPECT_NEAR(estimated_disagreement(step), 0.3 * (47.0 / 82) / 8.3, 1e-9);
}

TEST(Ladder, EveryShallowerStepHasToBeSafe) {
  const std::vector<LadderStep> ladder = {step_of(2, {0, 50}), step_of(4, {20, 50}),
                                          step_of(6, {0, 50})};
  EXPECT_EQ(greatest_safe(ladder, 0.05), 2);
}

TEST(Ladder, MeasuredKeepsAwayFromTheCliffButTakesAllLayers) {
  std::vector<LadderStep> ladder;
  for (int depth = 1; depth <= 12; ++depth) ladder.push_back(step_of(depth, {0, 50}));
  EXPECT_EQ(measured_depth(ladder, 0.02), 12);
  for (int i = 5; i < 12; ++i) ladder[static_cast<size_t>(i)].own = {30, 50};
  EXPECT_EQ(greatest_safe(ladder, 0.02), 5);
  EXPECT_EQ(measured_depth(ladder, 0.02), 3);
}

}  // namespace
}  // namespace bicached
