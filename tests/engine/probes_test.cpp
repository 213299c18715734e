// What is learned from probes, and what they cost.
#include <filesystem>
#include <fstream>

#include "engine/prefix_cache_fixture.h"

namespace bicached {
namespace {

/// With a budget that lets every request be probed, and short proofs (16 probes), so that what is
/// learned is seen soon.
class MeasuredTest : public PrefixCacheTest {
 protected:
  MeasuredTest() {
    cache.policy = "measured";
    cache.probe_budget = 1;
    cache.max_disagreement = 0.03;
  }
  /// Depth of the last of `count` requests of a prefix, or of the one before if that is deeper: for
  /// one of them it may have been watched.
  int depth_after(int count, int prefix = 1, const std::string& salt = "") {
    int before = 0, depth = 0;
    for (int i = 0; i < count; ++i) {
      GenerateRequest request =
          request_of(prefix_of(prefix), "question " + std::to_string(++num_asked_));
      request.cache.salt = salt;
      before = std::exchange(depth, ask(request).stats.depth);
    }
    return std::max(before, depth);
  }
  /// The server's, and not there yet.
  std::filesystem::path new_state_dir(const char* name) {
    const auto folder = std::filesystem::temp_directory_path() / name;
    std::filesystem::remove_all(folder);
    cache.state_dir = folder.string();
    return folder;
  }
  int num_asked_ = 0;
};

TEST_F(MeasuredTest, GoesAsDeepAsDecisionsStay) {
  start();
  EXPECT_EQ(depth_after(16), 0) << "16 probes at least have to agree";
  int deepest = 0;
  for (int i = 0; i < 80; ++i) deepest = std::max(deepest, depth_after(1));
  EXPECT_EQ(deepest, 4);
  EXPECT_GT(engine->cache_stats().probes, 15);
  EXPECT_EQ(engine->cache_stats().probe_disagreements, 0);
}

TEST_F(MeasuredTest, StaysShallowWhereTheyDoNot) {
  control->safe_depth = 2;
  start();
  int deepest = 0;
  for (int i = 0; i < 300; ++i) deepest = std::max(deepest, depth_after(1));
  EXPECT_EQ(deepest, 2);
  EXPECT_GT(engine->cache_stats().probe_disagreements, 0);
}

TEST_F(MeasuredTest, WhatOthersFoundMakesNothingSafe) {
  start();
  EXPECT_EQ(depth_after(120), 4);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(depth_after(1, 2), 0) << "another prefix";
    EXPECT_EQ(depth_after(1, 1, "tenant"), 0) << "another salt";
  }
  control->safe_depth = 0;
  depth_after(120, 2);
  depth_after(120, 1, "tenant");
  EXPECT_GT(engine->cache_stats().probe_disagreements, 0);
  const CacheReport report = engine->cache_report();
  for (const EntryReport& entry : report.entries) {
    for (const PlanReport& probe : entry.probes) {
      const bool is_first = entry.salt.empty() && probe.steps.back().agreed > 0;
      EXPECT_EQ(probe.steps.back().is_safe, is_first) << "its own outcomes, and no others";
    }
  }
}

TEST_F(MeasuredTest, WhatIsSafeAloneHasToBeSafeTogether) {
  start();
  const auto question = [](int i) {
    return request_of(prefix_of(1), "question " + std::to_string(i));
  };
  int depth = 0;
  for (int i = 0; i < 120; ++i) {
    GenerateRequest request = question(i);
    request.decode.intra_cache = IntraCache::kNone;
    depth = std::max(depth, ask(request).stats.depth);
  }
  ASSERT_EQ(depth, 4);
  control->clash_rows = 8;  // forwards of a block alone, of what was taken from an entry
  depth = 0;
  for (int i = 0; i < 400; ++i) {
    GenerateRequest request = question(i);
    std::string with, without;
    const int reused = ask(request, &with).stats.depth;
    if (i >= 300) depth = std::max(depth, reused);
    request.cache.policy = "off";
    ask(request, &without);
    ASSERT_EQ(with, without) << i;
  }
  EXPECT_GT(engine->cache_stats().probe_disagreements, 0) << "a plan inside was tried at depth 4";
  EXPECT_EQ(depth, 4);
}

TEST_F(MeasuredTest, ABolderPlanIsComparedWithTheOneInUse) {
  start();
  int depth = 0, num_deep = 0;
  for (int i = 0; i < 120; ++i) {
    GenerateRequest request = request_of(prefix_of(1), "question " + std::to_string(i));
    request.decode.intra_cache = IntraCache::kNone;
    depth = std::max(depth, ask(request).stats.depth);
  }
  ASSERT_EQ(depth, 4);
  // Nothing is known of plans inside a request yet.
  for (int i = 0; i < 16; ++i) {
    const int64_t before = engine->cache_stats().probes;
    depth = ask(request_of(prefix_of(1), "another " + std::to_string(i))).stats.depth;
    num_deep += engine->cache_stats().probes > before && depth == 4 ? 1 : 0;
  }
  EXPECT_GT(num_deep, 8) << "what is probed goes on reusing what is proven";
}

TEST_F(MeasuredTest, ADifferenceLowersTheDepthAtOnce) {
  start();
  ASSERT_EQ(depth_after(120), 4);
  control->safe_depth = 0;
  const int64_t before = engine->cache_stats().probe_disagreements;
  for (int i = 0; i < 400 && engine->cache_stats().probe_disagreements == before; ++i) {
    depth_after(1);
  }
  ASSERT_GT(engine->cache_stats().probe_disagreements, before) << "what is in use is watched";
  EXPECT_LT(depth_after(1), 4);
  depth_after(100);
  EXPECT_EQ(depth_after(1), 0);
}

TEST_F(MeasuredTest, AProbeEndsWithItsFirstDifference) {
  control->safe_depth = 0;
  start();
  int64_t before = 0;  // row-layers of the probes before the one that differed
  for (int i = 0; i < 300 && engine->cache_stats().probe_disagreements == 0; ++i) {
    before = engine->cache_stats().probe_row_layers;
    depth_after(1);
  }
  ASSERT_EQ(engine->cache_stats().probe_disagreements, 1);
  const auto whole = ask(request_of(prefix_of(1), "how long is all of it")).stats;
  ASSERT_EQ(whole.num_forwards, 16);
  const int64_t spent = engine->cache_stats().probe_row_layers - before;
  EXPECT_LT(spent, whole.row_layers / 4) << "the first forward, which is the longest";
}

TEST_F(MeasuredTest, AProbeEndsWhereAWholeBlockSaysNothing) {
  control->is_unsure = true;
  start();
  GenerateRequest request = request_of(prefix_of(1), "a long one");
  request.gen_length = request.decode.steps = 64;
  request.decode.algorithm = "threshold";
  request.decode.intra_cache = IntraCache::kNone;  // the depth alone is probed
  GenerationStats whole;
  for (int i = 0; i < 300; ++i) {
    const int64_t before = engine->cache_stats().probe_row_layers;
    whole = ask(request).stats;
    ASSERT_LT(engine->cache_stats().probe_row_layers - before, whole.row_layers / 3)
        << "the first of eight blocks, and a forward";
  }
  EXPECT_GT(engine->cache_stats().probe_row_layers, 0);
  EXPECT_EQ(engine->cache_stats().probes, 0);
  EXPECT_EQ(whole.depth, 0);
}

TEST_F(MeasuredTest, NeverCostsMoreThanTheBudgetBeyondOff) {
  cache.probe_budget = 0.05;
  control->safe_depth = 0;  // of the prefix nothing is ever saved
  start();
  int64_t off = 0;
  for (int i = 0; i < 400; ++i) {
    GenerateRequest request = request_of(prefix_of(1), "question " + std::to_string(i));
    ask(request);
    request.cache.policy = "off";
    off += ask(request).stats.row_layers;
    const int64_t measured = engine->stats().row_layers - off;
    ASSERT_LE(static_cast<double>(measured), (1 + cache.probe_budget) * static_cast<double>(off))
        << i;
  }
  EXPECT_GT(engine->cache_stats().probes, 0);
}

TEST_F(MeasuredTest, PrefixesThatAreUsedSeldomAreNotProbed) {
  start();
  for (int i = 0; i < 40; ++i) depth_after(10, i);
  for (const EntryReport& entry : engine->cache_report().entries) {
    for (const PlanReport& probe : entry.probes) {
      for (const PlanReport::Step& step : probe.steps) EXPECT_EQ(step.agreed + step.differed, 0);
    }
  }
}

TEST_F(MeasuredTest, AnEntryIsAsDeepAsItsRequestsWant) {
  control->safe_depth = 2;
  start();
  depth_after(300);
  engine->clear_cache();
  EXPECT_EQ(depth_after(2), 2);
  EXPECT_EQ(engine->cache_report().entries.at(0).depths, (std::vector<int>{1, 2}));
  EXPECT_EQ(engine->cache_report().bytes, control->entry_bytes);
}

TEST_F(MeasuredTest, ProbesChangeNoAnswer) {
  control->safe_depth = 0;  // whatever comes from an entry is wrong
  start();
  for (int i = 0; i < 60; ++i) {
    GenerateRequest request = request_of(prefix_of(1), "question " + std::to_string(i));
    std::string with, without;
    ask(request, &with);
    request.cache.policy = "off";
    ask(request, &without);
    EXPECT_EQ(with, without) << i;
  }
  EXPECT_GT(engine->cache_stats().probes, 0);
}

TEST_F(MeasuredTest, AProbeThatFailsCostsItsRequestNothing) {
  start();
  depth_after(20);
  // Whatever a forward with a shadow in it does wrong: it is tried again without.
  control->fail_forwards = 1;
  EXPECT_NE(try_to_ask(request_of(prefix_of(1), "unlucky")).finish, FinishReason::kError);
  EXPECT_EQ(engine->cache_report().probes_running, 0);
}

TEST_F(MeasuredTest, ProbesGiveWayToRequests) {
  // Room for the probed canvas and its shadow, and for no other.
  GenerateRequest probed = request_of(prefix_of(1), "a long answer");
  probed.gen_length = 200;
  probed.decode.steps = 200;
  start(2 * static_cast<int64_t>(probed.prompt_ids.size() + 200) + 20);
  control->end_one_in = 0;
  for (int i = 0; i < 20; ++i) ask(probed);
  control->forward_ms = 2;
  for (int i = 0; i < 20; ++i) {
    std::vector<GenerateRequest> job{probed};
    ResponseStream slow = engine->submit(std::move(job));
    while (!slow.next()->tokens.size()) continue;
    if (engine->cache_report().probes_running == 0) {
      while (slow.next()) continue;
      continue;
    }
    GenerateRequest other = request_of("other ", "question");
    other.cache.policy = "off";
    ask(other);
    EXPECT_FALSE(slow.is_done());
    while (slow.next()) continue;
    EXPECT_EQ(engine->cache_report().probes_running, 0);
    return;
  }
  FAIL() << "nothing was probed";
}

TEST_F(MeasuredTest, OutcomesSurviveARestart) {
  const auto folder = new_state_dir("bicached_state_test");
  start();
  ASSERT_EQ(depth_after(120), 4);
  engine->stop(std::chrono::milliseconds(1000));
  start();
  EXPECT_EQ(depth_after(2), 4) << "known from before";
  engine->clear_cache();
  EXPECT_EQ(depth_after(2), 4) << "only entries and prompts are gone";
  engine->clear_cache(/*forget_probes=*/true);
  EXPECT_EQ(depth_after(2), 0);
  engine->stop(std::chrono::milliseconds(1000));
  start();
  EXPECT_EQ(depth_after(2), 0) << "the file has forgotten too";
  engine.reset();
  std::filesystem::remove_all(folder);
}

TEST_F(MeasuredTest, AServerWithOtherPlansLeavesWhatWasLearnedAlone) {
  const auto folder = new_state_dir("bicached_other_plans_test");
  start();
  ASSERT_EQ(depth_after(120), 4);
  engine->stop(std::chrono::milliseconds(1000));
  cache.policy = "fixed";
  cache.depth = 2;
  start();
  GenerateRequest request = request_of(prefix_of(2), "a question");
  request.cache.policy = "measured";
  ask(request);
  engine->stop(std::chrono::milliseconds(1000));
  cache.policy = "measured";
  start();
  EXPECT_EQ(depth_after(2), 4);
  engine.reset();
  std::filesystem::remove_all(folder);
}

TEST_F(MeasuredTest, ABrokenStateFileIsKeptAsideAndCostsOnlyWhatItHeld) {
  for (const char* text : {"", "{", "[]", R"({"format": "bicached probes 1"})", "\x00\xff"}) {
    const auto folder = new_state_dir("bicached_broken_state_test");
    start();
    depth_after(1);
    engine.reset();
    std::filesystem::path file;
    for (const auto& item : std::filesystem::directory_iterator(folder)) {
      if (item.path().extension() == ".json") file = item.path();
    }
    ASSERT_FALSE(file.empty());
    std::ofstream(file) << text;
    start();
    EXPECT_FALSE(std::filesystem::exists(file)) << text;
    EXPECT_TRUE(std::filesystem::exists(file.string() + ".broken")) << text;
    EXPECT_EQ(depth_after(1), 0);
    engine.reset();
    std::filesystem::remove_all(folder);
  }
}

TEST_F(MeasuredTest, TheStartOfTheModelIsTakenUnlessARequestNamesItsOwn) {
  cache.start.plan = {IntraCache::kAdaptive, 16, 1, 3};
  start();
  EXPECT_EQ(ask(request_of(prefix_of(1), "a")).stats.refresh_depth, 3);
  GenerateRequest request = request_of(prefix_of(1), "b");
  request.decode.intra_cache = IntraCache::kDual;
  EXPECT_EQ(ask(request).stats.refresh_depth, 0);
  request.decode.intra_cache.reset();
  request.cache.deterministic = true;
  const GenerationStats stats = ask(request).stats;
  EXPECT_EQ(stats.cache, "off");
  EXPECT_EQ(stats.num_refreshes, 0);
}

}  // namespace
}  // namespace bicached
