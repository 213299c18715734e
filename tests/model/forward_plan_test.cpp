#include "model/forward_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace bicached {
namespace {

TEST(FilledSize, IsNearAndSeldomAnother) {
  EXPECT_EQ(filled_size(0, 8), 0);
  for (const int64_t step : {1, 8, 32}) {
    int64_t last = 0, different = 0;
    for (int64_t size = 1; size <= 4096; ++size) {
      const int64_t filled = filled_size(size, step);
      EXPECT_GE(filled, std::max(size, last));
      EXPECT_LE(filled, size + std::max(step - 1, size / 16));
      EXPECT_EQ(filled % step, 0);
      EXPECT_EQ(filled_size(filled, step), filled);
      different += filled == last ? 0 : 1;
      last = filled;
    }
    EXPECT_LE(different, 160);
  }
}

TEST(FillPlan, AddsRowsThatAreNobodys) {
  ForwardPlan plan;
  plan.segments.resize(2);
  plan.segments[0] = {0, 2, {{0, 0, 3}}, {{0, 3, 100, 9}}, 3, {4, 5, 6}, {104, 105, 106}};
  plan.segments[1] = {2, 3, {}, {}, 0, {}, {}};
  plan.tokens = {7, 8, 9};
  plan.wanted_rows = {1};
  fill_plan(plan, 4);
  EXPECT_EQ(plan.segments[0].num_rows, 4);
  EXPECT_EQ(plan.segments[0].positions, (std::vector<int64_t>{4, 5, 6, 0}));
  EXPECT_EQ(plan.segments[0].slots, (std::vector<int64_t>{104, 105, 106, -1}));
  EXPECT_EQ(plan.segments[0].sequences.front().num_rows, 3);
  EXPECT_EQ(plan.segments[1].num_rows, 0);
  EXPECT_EQ(plan.tokens, (std::vector<TokenId>{7, 8, 9, 0}));
  EXPECT_EQ(plan.wanted_rows, (std::vector<int64_t>{1, 0, 0, 0}));
}

}  // namespace
}  // namespace bicached
