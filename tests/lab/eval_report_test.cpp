#include "lab/eval_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace bicached {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kTiny = 1e-9;

EvalAnswer answer(std::vector<TokenId> ids, bool is_right, int depth = 0,
                  const std::string& cache = "off") {
  EvalAnswer made;
  made.ids = std::move(ids);
  made.is_right = is_right;
  made.stats.completion_tokens = static_cast<int>(made.ids.size());
  made.stats.first_token_us = 1000 * static_cast<int64_t>(made.ids.size());
  made.stats.depth = depth;
  made.stats.cache = cache;
  return made;
}

EvalRun run_of(const std::string& policy, std::vector<EvalAnswer> answers, double wall_s) {
  EvalRun run;
  run.policy = policy;
  run.answers = std::move(answers);
  run.wall_s = wall_s;
  run.forwards = 10;
  run.row_layers = policy == "off" ? 1000 : 600;
  return run;
}

/// Four questions of two families. off: 3 right. full: 2 right, one other, one with other ids.
std::vector<std::vector<EvalRun>> two_runs() {
  return {{run_of("off",
                  {answer({1}, true), answer({1, 2}, true), answer({3, 4, 5}, true),
                   answer({6, 6, 6, 6}, false)},
                  2.0),
           run_of("full",
                  {answer({1}, true, 12, "hit"), answer({9, 2}, false, 12, "hit"),
                   answer({3, 4, 5}, true, 6, "hit"), answer({6, 6, 7, 6}, false, 0, "miss")},
                  1.0)}};
}

const std::vector<std::string> kFamilies = {"a", "a", "b", "b"};

TEST(PairedDifference, IsWorkedOutByHand) {
  // Differences 0, -1, 0, +1, -1: sum -1, squares 3; variance (3 - 5 * 0.04) / 4 = 0.7,
  // half width 1.96 * sqrt(0.7 / 5) = 0.733364847...
  const PairedDifference found =
      paired_difference({true, false, false, true, false}, {true, true, false, false, true});
  EXPECT_NEAR(found.mean, -0.2, kTiny);
  EXPECT_NEAR(found.low, -1.0 / 7 - 0.5499090834, 1e-9);
  EXPECT_NEAR(found.high, -1.0 / 7 + 0.5499090834, 1e-9);
}

TEST(PairedDifference, OfFewEqualOutcomesIsUnsure) {
  const PairedDifference found = paired_difference({true, false}, {true, false});
  EXPECT_EQ(found.mean, 0);
  EXPECT_NEAR(found.low, -0.4900000000, 1e-9);
  EXPECT_NEAR(found.high, 0.4900000000, 1e-9);
}

TEST(PairedDifference, StaysWithinWhatIsPossible) {
  EXPECT_EQ(paired_difference({false, false, false}, {true, true, true}).low, -1);
}

TEST(PairedDifference, OfOneQuestionTellsLittle) {
  const PairedDifference found = paired_difference({true}, {false});
  EXPECT_EQ(found.mean, 1);
  EXPECT_LT(found.low, -0.5);
  EXPECT_EQ(found.high, 1);
}

TEST(Percentile, IsTheNearestRank) {
  EXPECT_EQ(percentile({4, 1, 3, 2}, 0.5), 2);
  EXPECT_EQ(percentile({4, 1, 3, 2}, 0.99), 4);
  EXPECT_EQ(percentile({7}, 0.5), 7);
  EXPECT_EQ(percentile({}, 0.5), 0);
}

TEST(Median, OfEvenlyManyIsBetweenTheMiddleTwo) {
  EXPECT_EQ(median({3, 1, 2}), 2);
  EXPECT_EQ(median({4, 1, 3, 2}), 2.5);
  EXPECT_EQ(median({}), 0);
}

TEST(EvalReport, ComparesWithOff) {
  const EvalReport report = make_eval_report(two_runs(), kFamilies);
  ASSERT_EQ(report.runs.size(), 2u);
  EXPECT_TRUE(report.has_off);
  EXPECT_EQ(report.reference, 0u);
  const EvalSummary& off = report.runs[0];
  const EvalSummary& full = report.runs[1];
  EXPECT_EQ(off.all.accuracy, 0.75);
  EXPECT_EQ(off.all.agreement, 1);
  EXPECT_EQ(off.hit_rate, 0);
  EXPECT_EQ(full.all.accuracy, 0.5);
  // One of 4 differs: centre -1 / 6, half width 1.96 * sqrt(2 - 1 / 6) / 6.
  EXPECT_NEAR(full.all.difference.mean, -0.25, kTiny);
  EXPECT_NEAR(full.all.difference.low, -0.6089754242524, kTiny);
  EXPECT_NEAR(full.all.difference.high, 0.2756420909191, kTiny);
  EXPECT_EQ(full.all.agreement, 0.5);
  EXPECT_EQ(full.all.mean_depth, 7.5);
  EXPECT_EQ(full.hit_rate, 0.75);
}

TEST(EvalReport, CountsSpeedOfAnsweredRequests) {
  const EvalReport report = make_eval_report(two_runs(), kFamilies);
  EXPECT_EQ(report.runs[0].requests_per_s, 2);
  EXPECT_EQ(report.runs[0].output_tokens_per_s, 5);
  EXPECT_EQ(report.runs[1].requests_per_s, 4);
  EXPECT_EQ(report.runs[0].ttft_ms_p50, 2);
  EXPECT_EQ(report.runs[0].ttft_ms_p99, 4);
}

TEST(EvalReport, SplitsByFamily) {
  const EvalReport report = make_eval_report(two_runs(), kFamilies);
  const EvalQuality& a = report.runs[1].families.at("a");
  const EvalQuality& b = report.runs[1].families.at("b");
  EXPECT_EQ(a.num, 2);
  EXPECT_EQ(a.accuracy, 0.5);
  EXPECT_EQ(a.difference.mean, -0.5);
  EXPECT_EQ(a.mean_depth, 12);
  EXPECT_EQ(b.accuracy, 0.5);
  EXPECT_EQ(b.difference.mean, 0);
  EXPECT_EQ(b.agreement, 0.5);
}

TEST(EvalReport, TakesMediansOfSpeedsAndTheRestOfTheFirstRound) {
  auto rounds = two_runs();
  for (const double wall_s : {8.0, 4.0}) {
    rounds.push_back(two_runs()[0]);
    for (EvalRun& run : rounds.back()) {
      run.wall_s = wall_s;
      run.forwards = 99;
      run.answers[0].is_right = false;
    }
  }
  const EvalReport report = make_eval_report(rounds, kFamilies);
  EXPECT_EQ(report.runs[0].wall_s, 4);
  EXPECT_EQ(report.runs[0].requests_per_s, 1);
  EXPECT_EQ(report.runs[0].forwards, 10);
  EXPECT_EQ(report.runs[0].all.accuracy, 0.75);
}

TEST(EvalReport, CountsFailuresAsWrongAndNeverAsEqual) {
  auto rounds = two_runs();
  for (EvalRun& run : rounds[0]) {
    run.answers[0] = {};
    run.answers[0].error = "out of memory";
  }
  const EvalReport report = make_eval_report(rounds, kFamilies);
  EXPECT_EQ(report.runs[0].num_failed, 1);
  EXPECT_EQ(report.runs[0].all.accuracy, 0.5);
  EXPECT_EQ(report.runs[0].requests_per_s, 1.5);
  EXPECT_EQ(report.runs[1].all.agreement, 0.25);
}

TEST(EvalReport, FirstRunIsTheReferenceWithoutOff) {
  auto rounds = two_runs();
  rounds[0][0].policy = "fixed:0";
  const EvalReport report = make_eval_report(rounds, kFamilies);
  EXPECT_FALSE(report.has_off);
  EXPECT_EQ(report.reference, 0u);
  EXPECT_THAT(eval_report_text(report, false), HasSubstr("first run, fixed:0"));
  EXPECT_THAT(eval_report_text(report, false), HasSubstr("points to fixed:0"));
}

TEST(EvalReport, OffIsTheReferenceWhereverItStands) {
  auto rounds = two_runs();
  std::swap(rounds[0][0], rounds[0][1]);
  const EvalReport report = make_eval_report(rounds, kFamilies);
  EXPECT_EQ(report.reference, 1u);
  EXPECT_NEAR(report.runs[0].all.difference.mean, -0.25, kTiny);
}

TEST(EvalReportText, IsATableOfAlignedColumns) {
  const std::string text = eval_report_text(make_eval_report(two_runs(), kFamilies), false);
  EXPECT_THAT(text, HasSubstr("policy  n  accuracy %     points to off [95 %]  same as off %  "
                              "depth  hit %  failed\n"
                              "off     4       75.00                reference         100.00   "
                              "0.00   0.00       0\n"
                              "full    4       50.00  -25.00 [-60.90, +27.56]          50.00   "
                              "7.50  75.00       0\n"));
  EXPECT_THAT(text,
              HasSubstr("full    4.000  2.000      10.0        10           150  0.600      0.00"));
  EXPECT_THAT(text, Not(HasSubstr("family")));
}

TEST(EvalReportText, HasFamiliesWhenAsked) {
  const std::string text = eval_report_text(make_eval_report(two_runs(), kFamilies), true);
  EXPECT_THAT(text, HasSubstr("family  policy  n"));
  EXPECT_THAT(text, HasSubstr("b       full    2"));
}

TEST(EvalReportJson, HasSharesAndFamilies) {
  const auto json = eval_report_json(make_eval_report(two_runs(), kFamilies));
  ASSERT_EQ(json.size(), 2u);
  EXPECT_EQ(json[1]["policy"], "full");
  EXPECT_EQ(json[1]["num"], 4);
  EXPECT_EQ(json[1]["accuracy"], 0.5);
  EXPECT_EQ(json[1]["agreement"], 0.5);
  EXPECT_EQ(json[1]["difference"], -0.25);
  EXPECT_EQ(json[1]["row_layers"], 600);
  EXPECT_EQ(json[1]["probe_row_layers"], 0);
  EXPECT_EQ(json[1]["hit_rate"], 0.75);
  EXPECT_EQ(json[1]["families"]["a"]["difference"], -0.5);
}

}  // namespace
}  // namespace bicached
