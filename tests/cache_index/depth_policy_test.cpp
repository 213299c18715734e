#include "bicached/depth_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "bicached/error.h"
#include "cache_index/depth/depth_table.h"

namespace bicached {
namespace {

/// Every policy of the table keeps these promises.
class DepthPolicyContract : public testing::TestWithParam<std::string> {};

TEST_P(DepthPolicyContract, StaysInRangeAndNamesTheDepthsThatItChooses) {
  const DepthTable table{"m", 12, {{1, 1}, {50, 7}, {99, 12}}};
  const DepthPolicy& policy = find_depth_policy(GetParam(), true);
  for (const int fixed : {0, 3, 12, 4000}) {
    std::vector<int> depths = policy.depths(12, fixed, &table);
    EXPECT_EQ(policy.reuses, !depths.empty());
    depths.push_back(0);
    for (const int prefix_len : {1, 50, 99, 100}) {
      for (const int proven : {0, 6, 12}) {
        const int depth = policy.choose({prefix_len, 100, 12, proven, fixed, &table});
        EXPECT_GE(depth, 0);
        EXPECT_LE(depth, 12);
        EXPECT_TRUE(std::ranges::count(depths, depth)) << depth;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, DepthPolicyContract, testing::ValuesIn(depth_policy_names()));

TEST(DepthPolicy, UnknownNamesAndAMissingTableAreRefused) {
  for (const char* name : {"nope", "table", ""}) {
    try {
      find_depth_policy(name, false);
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
  const DepthTable llada = DepthTable::load(folder + "llada-8b-instruct.json", 32);
  EXPECT_EQ(llada.num_layers, 32);
  EXPECT_EQ(llada.depth_at(0), 1);
  EXPECT_EQ(llada.depth_at(66), 14);
  EXPECT_EQ(DepthTable::load(folder + "dream-v0-instruct-7b.json", 28).num_layers, 28);
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
      {R"({"num_layers": 5, "steps": [{"min_ratio_percent": 1, "depth": 1}]})", "of 5 layers"},
      {"{", "depth_table_test"},
  };
  for (const auto& [text, want] : cases) {
    std::ofstream(path) << text;
    try {
      DepthTable::load(path.string(), 4);
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidSettings);
      EXPECT_NE(std::string(error.what()).find(want), std::string::npos) << error.what();
    }
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace bicached
