#include "engine/cache_json.h"

#include <gtest/gtest.h>

#include <climits>
#include <nlohmann/json.hpp>

#include "http/answer_writer.h"
#include "http/fake_text.h"
#include "http/metrics.h"

namespace bicached {
namespace {

CacheReport report() {
  PlanReport shared{"threshold/32/64", {}};
  shared.steps.push_back({std::nullopt, 2, 3, 0, 0.125, true});
  shared.steps.push_back({std::nullopt, 3, 1, 2.12345, 0.5, false});
  PlanReport model = shared;
  model.steps.push_back(
      {InsidePlan{IntraCache::kDual, 16, INT_MAX, 0}, std::nullopt, 9, 1, 0.1, false});
  EntryReport entry;
  entry.id = "0a";
  entry.salt = "tenant";
  entry.num_tokens = 120;
  entry.bytes = 4096;
  entry.hits = 7;
  entry.num_users = 1;
  entry.pinned = true;
  entry.ready = true;
  entry.saved_row_layers = 960;
  entry.age_s = 1.23456;
  entry.depths = {1, 2, 3};
  entry.probes = {shared};
  CacheReport out;
  out.policy = "measured";
  out.budget_bytes = 8192;
  out.bytes = 4096;
  out.hits = 7;
  out.misses = 2;
  out.entries = {entry};
  out.model_probes = {model};
  return out;
}

TEST(CacheJson, TellsEverythingOfTheReport) {
  const auto json = cache_json(report());
  EXPECT_EQ(json.at("policy"), "measured");
  EXPECT_EQ(json.at("budget_bytes"), 8192);
  EXPECT_EQ(json.at("hits"), 7);
  EXPECT_EQ(json.at("misses"), 2);
  const auto& entry = json.at("entries").at(0);
  EXPECT_EQ(entry.at("id"), "0a");
  EXPECT_EQ(entry.at("salt"), "tenant");
  EXPECT_EQ(entry.at("tokens"), 120);
  EXPECT_EQ(entry.at("in_use"), 1);
  EXPECT_EQ(entry.at("pinned"), true);
  EXPECT_EQ(entry.at("age_s"), 1.235);
  EXPECT_EQ(entry.at("depths"), (std::vector<int>{1, 2, 3}));
}

TEST(CacheJson, PlansAreOfAPrefixOrInsideARequest) {
  const auto json = cache_json(report());
  const auto& own = json.at("entries").at(0).at("probes").at(0);
  EXPECT_EQ(own.at("kind"), "threshold/32/64");
  ASSERT_EQ(own.at("plans").size(), 2u);
  EXPECT_EQ(own.at("plans").at(0), nlohmann::ordered_json::parse(R"({"depth": 2, "agreed": 3.0,
      "differed": 0.0, "estimated_disagreement": 0.125, "safe": true})"));
  EXPECT_EQ(own.at("plans").at(1).at("differed"), 2.123);
  EXPECT_EQ(own.at("plans").at(1).at("safe"), false);
  const auto& inside = json.at("model_probes").at(0).at("plans").at(2);
  EXPECT_FALSE(inside.contains("depth"));
  EXPECT_EQ(inside.at("inside"),
            nlohmann::ordered_json::parse(R"({"intra_cache": "dual", "refresh_interval": 16,
      "refresh_commits": null, "refresh_depth": 0})"));
}

TEST(CacheMetrics, DepthsOfHitsAreCounted) {
  Metrics metrics;
  ModelInfo model;
  model.name = "m";
  metrics.set_model(model);
  RequestTotals totals;
  totals.cache_depths = {4, 7};
  metrics.finish_request(totals, 0.1);
  metrics.finish_request(RequestTotals{}, 0.1);  // a miss
  CacheStats stats;
  stats.hits = 2;
  stats.probe_checks = 11;
  const std::string text = metrics.text(nullptr, &stats);
  for (const char* line :
       {"bicached_cache_depth_bucket{model=\"m\",le=\"4\"} 1", "bicached_cache_hits_total 2",
        "bicached_cache_depth_bucket{model=\"m\",le=\"8\"} 2", "bicached_cache_misses_total 0",
        "bicached_cache_depth_count{model=\"m\"} 2", "bicached_probe_checks_total 11"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  }
}

/// An answer of `n` choices a prompt with these numbers, as the engine would have sent them.
nlohmann::ordered_json answer(const std::vector<GenerationStats>& stats, int n) {
  const FakeTokenizer tokenizer;
  Job job;
  job.prompt_tokens = 100;
  job.choices_per_prompt = n;
  job.canvases.resize(stats.size());
  std::vector<Choice> choices;
  for (const GenerationStats& one : stats) {
    GenerationUpdate update;
    update.stats = one;
    update.finish = FinishReason::kStop;
    choices.emplace_back(tokenizer, std::vector<std::string>{});
    choices.back().accept(update);
  }
  const auto writer = make_writer(job, tokenizer, "id");
  return OrderedJson::parse(writer->plain(choices, std::vector<ChoiceDelta>(stats.size())));
}

GenerationStats hit(int prefix_len, int depth) {
  GenerationStats stats;
  stats.cache = "hit";
  stats.cached_tokens = stats.prefix_len = prefix_len;
  stats.depth = depth;
  stats.num_forwards = 5;
  return stats;
}

GenerationStats miss() {
  GenerationStats stats;
  stats.cache = "miss";
  stats.num_forwards = 6;
  return stats;
}

TEST(CacheUsage, FollowsTheEnginesNumbers) {
  const auto one = answer({hit(64, 5)}, 1);
  EXPECT_EQ(one.at("usage").at("prompt_tokens_details").at("cached_tokens"), 64);
  EXPECT_EQ(one.at("diffusion").at("cache"), "hit");
  EXPECT_EQ(one.at("diffusion").at("prefix_len"), 64);
  EXPECT_EQ(one.at("diffusion").at("depth"), 5);
  EXPECT_EQ(one.at("diffusion").at("forwards"), 5);
}

TEST(CacheUsage, AHitAmongTheChoicesIsTheOneDescribed) {
  const auto several = answer({GenerationStats{}, miss(), hit(64, 5), miss()}, 4);
  EXPECT_EQ(several.at("diffusion").at("cache"), "hit");
  EXPECT_EQ(several.at("diffusion").at("prefix_len"), 64);
  EXPECT_EQ(several.at("diffusion").at("depth"), 5);
  EXPECT_EQ(answer({GenerationStats{}, miss()}, 2).at("diffusion").at("cache"), "miss");
  EXPECT_EQ(answer({GenerationStats{}}, 1).at("diffusion").at("cache"), "off");
}

TEST(CacheUsage, CachedTokensAreOfPromptsNotOfChoices) {
  const auto two_prompts = answer({hit(64, 5), hit(64, 5), hit(20, 5), hit(20, 5)}, 2);
  EXPECT_EQ(two_prompts.at("usage").at("prompt_tokens_details").at("cached_tokens"), 84);
}

}  // namespace
}  // namespace bicached
