#include "decode/planner.h"

#include <tuple>

#include "decode/decoder_fixture.h"

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

}  // namespace
}  // namespace bicached
