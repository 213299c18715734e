#include "cache_index/probe_stats.h"

#include <gtest/gtest.h>

#include "bicached/error.h"

namespace bicached {
namespace {

using Ids = std::vector<TokenId>;

class ProbeStatsTest : public testing::Test {
 protected:
  static ProbeStats::Settings settings() {
    ProbeStats::Settings settings;
    for (int depth = 1; depth <= 12; ++depth) settings.depths.push_back(depth);
    settings.max_disagreement = 0.02;
    return settings;
  }
  static PrefixLine line_of(TokenId application, TokenId data) {
    Ids ids(8, application);
    ids.resize(100, data);
    return prefix_line("", ids, {static_cast<uint64_t>(application), static_cast<uint64_t>(data)});
  }
  int depth(const PrefixLine& line) const { return measured_depth(stats.depths(line, kind), 0.02); }
  /// A request; its decisions stay the same up to `good` layers.
  bool request(const PrefixLine& line, int good) {
    if (!stats.take_turn(line, kind)) return false;
    stats.record(line, kind, ProbeVerdict{good, good < 12 ? good + 1 : ProbeVerdict::kNever},
                 std::nullopt);
    return true;
  }

  ProbeStats stats{settings()};
  const CanvasKind kind = CanvasKind::of(70, 100, 64);
};

TEST_F(ProbeStatsTest, KindsOfCanvas) {
  EXPECT_EQ(CanvasKind::of(70, 100, 33), (CanvasKind{50, 64}));
  EXPECT_EQ(CanvasKind::of(49, 100, 64), (CanvasKind{0, 64}));
  EXPECT_EQ(CanvasKind::of(80, 100, 65), (CanvasKind{80, 128}));
}

TEST_F(ProbeStatsTest, IsCarefulUntilItKnows) {
  EXPECT_EQ(depth(line_of(1, 1)), 0);
  EXPECT_EQ(stats.safe_refresh_depth(line_of(1, 1), kind), 0);
}

TEST_F(ProbeStatsTest, GoesDeepWhereDecisionsStayAndNotElsewhere) {
  for (int i = 0; i < 40; ++i) request(line_of(1, 1), 12);
  for (int i = 0; i < 40; ++i) request(line_of(2, 1), 5);
  EXPECT_EQ(depth(line_of(1, 1)), 12);
  EXPECT_EQ(depth(line_of(2, 1)), 3);
  EXPECT_EQ(depth(line_of(1, 2)), 12) << "begins alike, never probed";
  EXPECT_EQ(depth(line_of(2, 2)), 3);
  EXPECT_LE(depth(line_of(3, 1)), 3) << "an unknown application";
}

TEST_F(ProbeStatsTest, ProbesGrowRareButNeverStop) {
  int early = 0, late = 0;
  for (int i = 0; i < 50; ++i) early += request(line_of(2, 1), 5);
  for (int i = 0; i < 1000; ++i) late += request(line_of(2, 1), 5);
  EXPECT_GE(early, 3);
  EXPECT_LE(early, 20);
  EXPECT_GE(late, 15);
  EXPECT_LE(late, 100);
}

TEST_F(ProbeStatsTest, OneThatDifferedOutweighsManyThatAgreedElsewhere) {
  for (TokenId application = 1; application <= 40; ++application) {
    for (int i = 0; i < 40; ++i) request(line_of(application, 1), 12);
  }
  const PrefixLine other = line_of(99, 1);
  EXPECT_EQ(depth(other), 12) << "all agreed so far";
  for (int uses = 0; !request(other, 3); ++uses) ASSERT_LT(uses, 10);
  EXPECT_LE(depth(other), 3);
  EXPECT_EQ(depth(line_of(1, 1)), 12);
}

TEST_F(ProbeStatsTest, AProbeThatFoundNothingOutIsNotRepeatedAtOnce) {
  const PrefixLine line = line_of(1, 1);
  for (int i = 0; i < 12; ++i) request(line, 5);
  while (!stats.take_turn(line, kind)) continue;
  stats.skip(line, kind);
  EXPECT_FALSE(stats.take_turn(line, kind));
  int uses = 0;
  while (!stats.take_turn(line, kind)) ASSERT_LT(++uses, 200);
}

TEST_F(ProbeStatsTest, ARateOfOneProbesEveryUse) {
  ProbeStats::Settings all = settings();
  all.probe_rate = 1;
  stats = ProbeStats(all);
  for (TokenId application = 1; application <= 20; ++application) {
    const int good = application % 2 == 0 ? 12 : 5;
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(request(line_of(application, 1), good)) << application << " use " << i;
      EXPECT_TRUE(request(line_of(application, 2), good)) << application << " use " << i;
    }
  }
}

TEST_F(ProbeStatsTest, NoticesAChangeOfQuestionsWithinTwentyRequests) {
  const PrefixLine line = line_of(1, 1);
  for (int talk = 10; talk < 60; ++talk) {
    stats = ProbeStats(settings());
    for (int i = 0; i < talk; ++i) request(line, 12);
    for (int i = 0; i < 20; ++i) request(line, 5);
    EXPECT_LT(depth(line), 12) << "after " << talk << " requests of small talk";
  }
}

TEST_F(ProbeStatsTest, ARunningProbeBlocksNoTurnForEver) {
  const PrefixLine line = line_of(1, 1);
  for (int i = 0; i < 12; ++i) request(line, 5);
  int taken = 0;
  for (int i = 0; i < 200; ++i) taken += stats.take_turn(line, kind);
  EXPECT_EQ(taken, 1);
  stats.give_up(line, kind);
  taken = 0;
  for (int i = 0; i < 200; ++i) taken += stats.take_turn(line, kind);
  EXPECT_EQ(taken, 1);
}

TEST_F(ProbeStatsTest, RefreshDepthsAreLearntApartFromDepths) {
  const PrefixLine line = line_of(1, 1);
  for (int i = 0; i < 40; ++i) {
    stats.take_turn(line, kind);
    stats.record(line, kind, ProbeVerdict{3, 4}, ProbeVerdict{8, 9});
  }
  EXPECT_EQ(stats.safe_refresh_depth(line, kind), 8);
  EXPECT_EQ(depth(line), 1);
  for (int i = 0; i < 20; ++i) stats.record(line, kind, ProbeVerdict{3, 4}, std::nullopt);
  EXPECT_EQ(stats.safe_refresh_depth(line, kind), 8) << "where no case was looked at";
}

TEST_F(ProbeStatsTest, SurvivesARestart) {
  for (int i = 0; i < 40; ++i) request(line_of(1, 1), 12);
  ProbeStats again(settings());
  again.from_json(stats.to_json(), "file");
  EXPECT_EQ(measured_depth(again.depths(line_of(1, 2), kind), 0.02), 12);
  EXPECT_EQ(again.to_json(), stats.to_json());
}

TEST_F(ProbeStatsTest, BrokenFilesAreRefusedOrPassedOver) {
  for (const char* text : {"", "[]", "{}", R"({"format": 7})", "{"}) {
    EXPECT_THROW(stats.from_json(text, "file"), Error) << text;
  }
  stats.from_json(R"({"format": "bicached probes 1", "model": 3, "prefixes": [1, {"prefix": "zz"},
      {"prefix": "00000000000000000000000000000001", "depths": [[1, 5, 2], "x", [1e99, 0, 0]]}]})",
                  "file");
  EXPECT_EQ(depth(line_of(1, 1)), 0);
}

TEST_F(ProbeStatsTest, OffMeansNever) {
  ProbeStats::Settings off = settings();
  off.probe_first = 0;
  off.probe_rate = 0;
  stats = ProbeStats(off);
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(stats.take_turn(line_of(1, 1), kind));
}

}  // namespace
}  // namespace bicached
