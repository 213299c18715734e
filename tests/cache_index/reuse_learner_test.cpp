#include "cache_index/reuse_learner.h"

#include <gtest/gtest.h>

#include <climits>
#include <map>
#include <random>

#include "bicached/error.h"
#include "cache_index/outcomes.h"
#include "config/reuse_start.h"

namespace bicached {
namespace {

TEST(Outcomes, SixteenProbesProveAPlanToThreePercent) {
  Outcomes outcomes(3);
  EXPECT_EQ(outcomes.safe_step(0.03), -1);
  EXPECT_NEAR(outcomes.missing(2, 0.03), 0.5 / 0.03 - 1, 1e-9);
  for (int i = 0; i < 15; ++i) outcomes.record(1, true);
  EXPECT_EQ(outcomes.safe_step(0.03), -1);
  outcomes.record(1, true);
  EXPECT_EQ(outcomes.safe_step(0.03), 1) << "and what is more careful";
  EXPECT_GT(outcomes.missing(2, 0.03), 15) << "nothing is known of a bolder one";
}

TEST(Outcomes, ADifferenceSpeaksAgainstBolderPlansOnly) {
  Outcomes outcomes(3);
  for (int i = 0; i < 30; ++i) outcomes.record(2, true);
  EXPECT_EQ(outcomes.safe_step(0.03), 2);
  outcomes.record(1, false);
  EXPECT_EQ(outcomes.safe_step(0.03), 0);
  EXPECT_TRUE(outcomes.is_open(0));
  EXPECT_FALSE(outcomes.is_open(1));
  EXPECT_FALSE(outcomes.is_open(2));
  for (int i = 0; i < 500; ++i) outcomes.record(0, true);
  EXPECT_TRUE(outcomes.is_open(1)) << "it is tried again in the end";
}

TEST(Outcomes, DoubtHalvesWhatAgreed) {
  Outcomes outcomes(1);
  for (int i = 0; i < 24; ++i) outcomes.record(0, true);
  EXPECT_EQ(outcomes.safe_step(0.03), 0);
  outcomes.doubt();
  EXPECT_EQ(outcomes.safe_step(0.03), -1);
}

TEST(InsidePlans, GoFromCarefulToBoldWithTheStartAmongThem) {
  const InsidePlan start{IntraCache::kAdaptive, 16, 1, 5};
  const std::vector<InsidePlan> plans = inside_plans(12, start);
  ASSERT_EQ(plans.size(), 6u);
  EXPECT_EQ(plans.front(), InsidePlan{});
  EXPECT_EQ(plans[4], start);
  EXPECT_EQ(plans.back().intra_cache, IntraCache::kDual);
  EXPECT_EQ(inside_plans(12, {}).size(), 5u);
  EXPECT_EQ(inside_plans(1, {}).size(), 3u) << "no two are alike";
}

TEST(RequestKind, RoundsUp) {
  GenerateRequest request;
  request.decode.algorithm = "threshold";
  request.gen_length = 65;
  request.decode.block_length = 20;
  EXPECT_EQ(request_kind(request), "threshold/32/128");
}

class ReuseLearnerTest : public testing::Test {
 protected:
  ReuseLearnerTest() {
    settings.max_disagreement = 0.03;
    settings.probe_budget = 0.03;
  }

  static ReuseLearner::Subject subject_of(uint64_t prefix) {
    return {{prefix, prefix}, "threshold/32/64", 300, 200, 32, 12};
  }

  /// A request of this prefix, which stands reuse down to `safe_depth` and every plan inside.
  /// Returns the depth it runs at.
  int ask(ReuseLearner& learner, uint64_t prefix, int safe_depth) {
    const ReuseLearner::Subject subject = subject_of(prefix);
    learner.count_use(subject);
    const auto trial = learner.next_trial(subject);
    int depth = learner.depth(subject.prefix, subject.kind);
    GenerationStats stats;
    stats.num_forwards = stats.num_text_forwards = 2;
    stats.num_blocks = 1;
    const int64_t whole = 2 * 300 * 12;
    if (trial) {
      learner.begin(*trial);
      const int tried = trial->is_shared ? learner.depth_step(trial->step) : 0;
      const auto cost = static_cast<int64_t>(trial->cost);
      probes += cost;
      num_shared_probes += trial->is_shared ? 1 : 0;
      watched[prefix] += trial->is_proof ? 0 : 1;
      learner.end(*trial, tried <= safe_depth, cost);
      if (trial->is_shared && !trial->is_proof) depth = 0;
    }
    const int64_t saved = 2 * 200 * depth;
    stats.row_layers = whole - saved;
    work += stats.row_layers;
    all_saved += saved;
    learner.finish(subject, stats, {}, depth, saved);
    return depth;
  }

  CacheSettings settings;
  const std::vector<int> depths = {1, 3, 4, 6, 9, 12};
  int64_t probes = 0, work = 0, all_saved = 0;
  int num_shared_probes = 0;
  std::map<uint64_t, int> watched;  // by prefix
};

TEST_F(ReuseLearnerTest, FindsTheDepthOfEachPrefixByItsOwnOutcomes) {
  ReuseLearner learner(settings, 12, depths);
  const std::vector<int> safe = {12, 5, 12, 0, 3, 12};
  std::mt19937 random(1);
  for (int i = 0; i < 6000; ++i) {
    const size_t prefix = random() % safe.size();
    const int depth = ask(learner, prefix, safe[prefix]);
    ASSERT_LE(depth, safe[prefix]) << "request " << i;
  }
  const std::vector<int> expected = {12, 4, 12, 0, 3, 12};
  for (size_t i = 0; i < safe.size(); ++i) {
    EXPECT_EQ(learner.depth({i, i}, "threshold/32/64"), expected[i]) << i;
  }
}

TEST_F(ReuseLearnerTest, KeepsToTheBudgetWhateverTheTraffic) {
  for (const int num_prefixes : {1, 4, 40, 400}) {
    for (const int safe_depth : {0, 4, 12}) {
      ReuseLearner learner(settings, 12, depths);
      probes = work = all_saved = 0;
      std::mt19937 random(7);
      for (int i = 0; i < 4000; ++i) {
        ask(learner, random() % static_cast<unsigned>(num_prefixes), safe_depth);
        ASSERT_LE(static_cast<double>(probes),
                  0.03 * static_cast<double>(work) + static_cast<double>(all_saved) / 3)
            << i << ", " << num_prefixes << " prefixes, safe " << safe_depth;
      }
    }
  }
}

TEST_F(ReuseLearnerTest, LeavesPrefixesAloneThatNeverPay) {
  ReuseLearner learner(settings, 12, depths);
  for (int i = 0; i < 4000; ++i) ask(learner, static_cast<uint64_t>(i / 12), 12);
  EXPECT_EQ(num_shared_probes, 0);
  for (int i = 0; i < 4000 / 12; ++i) {
    const auto prefix = static_cast<uint64_t>(i);
    ASSERT_EQ(learner.depth({prefix, prefix}, "threshold/32/64"), 0);
  }
}

TEST_F(ReuseLearnerTest, ProbesThatFindNothingOutBecomeRare) {
  ReuseLearner learner(settings, 12, depths);
  int num_probed = 0;
  for (int i = 0; i < 3000; ++i) {
    const ReuseLearner::Subject subject = subject_of(1);
    learner.count_use(subject);
    if (const auto trial = learner.next_trial(subject)) {
      ++num_probed;
      learner.begin(*trial);
      learner.end(*trial, std::nullopt, static_cast<int64_t>(trial->cost));
    }
    GenerationStats stats;
    stats.num_forwards = stats.num_text_forwards = 2;
    stats.row_layers = 7200;
    learner.finish(subject, stats, {}, 0, 0);
  }
  EXPECT_GT(num_probed, 2);
  EXPECT_LT(num_probed, 20);
}

TEST_F(ReuseLearnerTest, WatchesWhatIsInUse) {
  ReuseLearner learner(settings, 12, depths);
  for (int i = 0; i < 2000; ++i) ask(learner, 1, 12);
  ASSERT_EQ(learner.depth({1, 1}, "threshold/32/64"), 12);
  int num_wrong = 0;
  for (int i = 0; i < 400; ++i) num_wrong += ask(learner, 1, 0) > 0 ? 1 : 0;
  EXPECT_EQ(learner.depth({1, 1}, "threshold/32/64"), 0);
  EXPECT_LE(num_wrong, 250);
}

TEST_F(ReuseLearnerTest, WatchesWhatIsInUseWhileOthersAreProven) {
  ReuseLearner learner(settings, 12, depths);
  for (int i = 0; i < 2000; ++i) ask(learner, 1, 12);
  watched.clear();
  for (uint64_t i = 0; i < 2000; ++i) {
    ask(learner, 1, 12);
    // There is always a prefix whose proof would take all there is.
    for (int k = 0; k < 3; ++k) ask(learner, 2 + i / 100, 12);
  }
  EXPECT_GT(watched[1], 10);
}

TEST_F(ReuseLearnerTest, WhatABolderPlanInsideSavesPaysForProbesIfItIsKnown) {
  for (const bool counts_steps : {false, true}) {
    ReuseLearner learner(settings, 12, depths);
    ReuseLearner::Subject subject = subject_of(1);
    subject.counts_steps = counts_steps;
    GenerationStats stats;
    stats.num_forwards = stats.num_text_forwards = 32;
    stats.num_blocks = 1;
    const int64_t whole = int64_t{32} * 300 * 12;
    const InsidePlan dual = default_plan(IntraCache::kDual);
    int64_t spent = 0, saved = 0, run = 0;
    for (int i = 0; i < 400; ++i) {
      learner.count_use(subject);
      if (const auto trial = learner.next_trial(subject)) {
        spent += static_cast<int64_t>(trial->cost);
        learner.begin(*trial);
        learner.end(*trial, true, static_cast<int64_t>(trial->cost));
      }
      stats.row_layers = int64_t{12} * (300 + 31 * 32);
      learner.finish(subject, stats, dual, 0, 0);
      saved += whole - stats.row_layers;
      run += stats.row_layers;
    }
    const double budget = settings.probe_budget * static_cast<double>(run);
    EXPECT_EQ(static_cast<double>(spent) > budget, counts_steps);
    EXPECT_LE(static_cast<double>(spent), budget + static_cast<double>(saved) / 3);
  }
}

TEST_F(ReuseLearnerTest, APlanInsideIsBolderThanTheStartOnlyForThePrefixThatProvedIt) {
  ReuseLearner learner(settings, 12, depths);
  const std::string kind = "threshold/32/64";
  for (int i = 0; i < 20; ++i) {
    const ReuseLearner::Trial trial{.subject = subject_of(1), .is_proof = true, .step = 2};
    learner.begin(trial);
    learner.end(trial, true, 0);
  }
  EXPECT_EQ(learner.inside({1, 1}, kind), learner.inside_step(2));
  EXPECT_EQ(learner.inside({2, 2}, kind), InsidePlan{});
}

TEST_F(ReuseLearnerTest, APublishedStartIsTheLeastThatIsReused) {
  const InsidePlan dual{IntraCache::kDual, 16, INT_MAX, 0};
  settings.start.plan = dual;
  const std::string kind = "threshold/32/64";
  for (const bool is_published : {false, true}) {
    settings.start.is_published = is_published;
    ReuseLearner learner(settings, 12, depths);
    EXPECT_EQ(learner.inside({7, 7}, kind), dual);
    for (int i = 0; i < 20; ++i) {
      const ReuseLearner::Trial watch{.subject = subject_of(1), .step = 4};
      learner.begin(watch);
      learner.end(watch, false, 0);
    }
    EXPECT_EQ(learner.inside({7, 7}, kind) == dual, is_published);
  }
}

TEST_F(ReuseLearnerTest, TheFileHoldsWhatWasLearned) {
  ReuseLearner learner(settings, 12, depths);
  for (int i = 0; i < 2000; ++i) ask(learner, 1, 12);
  ReuseLearner other(settings, 12, depths);
  other.from_json(learner.to_json(), "file");
  EXPECT_EQ(other.depth({1, 1}, "threshold/32/64"), 12);
  EXPECT_EQ(other.to_json(), learner.to_json());
  ReuseLearner another_ladder(settings, 12, {1, 2});
  EXPECT_THROW(another_ladder.from_json(learner.to_json(), "file"), Error);
  EXPECT_NE(another_ladder.ladders(), learner.ladders());
}

TEST_F(ReuseLearnerTest, FilesThatAreNoneOfOursAreRefusedAndOddRecordsLeftOut) {
  for (const char* text : {"", "[]", "{}", R"({"format": "bicached probes 2"})", "{\"format\":"}) {
    EXPECT_THROW(ReuseLearner(settings, 12, depths).from_json(text, "file"), Error) << text;
  }
  ReuseLearner learner(settings, 12, depths);
  for (int i = 0; i < 2000; ++i) ask(learner, 1, 12);
  const std::string good = learner.to_json();
  const auto with = [&](const std::string& records) {
    return good.substr(0, good.find("\"records\":")) + "\"records\":" + records + "}";
  };
  for (const char* records :
       {"7", "{}", "[7, {}, null, {\"prefix\": \"x\"}]",
        R"([{"prefix": "ffffffffffffffffffffffffffffffff", "kind": 3, "course": "many"}])",
        R"([{"prefix": "00000000000000010000000000000001", "kind": "threshold/32/64", "uses": [-1],
             "shared": [-5, 0, 1e300, 0, "a", [], 3, 0, 0, -1e300, 1, 1]}])"}) {
    ReuseLearner odd(settings, 12, depths);
    odd.from_json(with(records), "file");
    EXPECT_EQ(odd.depth({1, 1}, "threshold/32/64"), 0) << records;
  }
  ReuseLearner same(settings, 12, depths);
  same.from_json(good, "file");
  EXPECT_EQ(same.depth({1, 1}, "threshold/32/64"), 12);
}

TEST_F(ReuseLearnerTest, RemembersTheKindsInUseAndSoManyPrefixes) {
  ReuseLearner learner(settings, 12, depths);
  for (uint64_t prefix = 1; prefix <= 6000; ++prefix) ask(learner, prefix, 12);
  std::map<Hash128, std::vector<PlanReport>> reports{
      {ReuseLearner::kEveryPrefix, {}}, {{1, 1}, {}}, {{6000, 6000}, {}}};
  learner.report(reports);
  EXPECT_EQ(reports[ReuseLearner::kEveryPrefix].size(), 1u);
  EXPECT_TRUE((reports[{1, 1}].empty())) << "not seen for longest";
  EXPECT_EQ((reports[{6000, 6000}].size()), 1u);
}

}  // namespace
}  // namespace bicached
