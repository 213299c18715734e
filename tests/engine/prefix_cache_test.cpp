// The prefix cache through the engine, with a model that is none: who shares what with whom.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "bicached/engine.h"
#include "bicached/error.h"
#include "engine/fake_denoiser.h"

namespace bicached {
namespace {

class PrefixCacheTest : public testing::Test {
 protected:
  PrefixCacheTest() {
    cache.policy = "fixed";
    cache.depth = 2;
    settings.integrity_checks = true;
  }
  ~PrefixCacheTest() override {
    engine.reset();
    EXPECT_EQ(control->num_open_slabs, 0);
  }

  void start(int64_t capacity_tokens = 1 << 20) {
    engine = std::make_unique<Engine>(std::make_unique<FakeDenoiser>(control, capacity_tokens),
                                      settings, cache);
    engine->start();
  }

  static GenerateRequest request_of(const std::string& prefix, const std::string& question) {
    GenerateRequest request;
    const std::string prompt = prefix + question;
    request.prompt_ids.assign(prompt.begin(), prompt.end());
    request.prefix_boundaries = {static_cast<int>(prefix.size())};
    request.gen_length = 16;
    request.decode.block_length = 8;
    request.decode.steps = 16;
    return request;
  }

  GenerationUpdate ask(GenerateRequest request, std::string* text = nullptr) {
    const GenerationUpdate last = try_to_ask(std::move(request), text);
    EXPECT_NE(last.finish, FinishReason::kError) << last.error_message;
    return last;
  }
  GenerationUpdate try_to_ask(GenerateRequest request, std::string* text = nullptr) {
    std::vector<GenerateRequest> job;
    job.push_back(std::move(request));
    ResponseStream stream = engine->submit(std::move(job));
    GenerationUpdate last;
    while (auto update = stream.next()) {
      for (const DecidedToken& token : update->tokens) {
        if (text) *text += static_cast<char>(token.token);
      }
      last = *update;
    }
    return last;
  }
  std::string cache_state(GenerateRequest request) { return ask(std::move(request)).stats.cache; }

  static std::string prefix_of(int i, int length = 40) {
    std::string text = std::to_string(i);
    text.resize(static_cast<size_t>(length), 'p');
    return text;
  }

  EngineSettings settings;
  CacheSettings cache;
  std::shared_ptr<FakeDenoiser::Control> control = std::make_shared<FakeDenoiser::Control>();
  std::unique_ptr<Engine> engine;
};

TEST_F(PrefixCacheTest, TheSecondUseMakesTheEntryAndTakesItUp) {
  start();
  EXPECT_EQ(cache_state(request_of(prefix_of(1), "a?")), "miss");
  const GenerationStats second = ask(request_of(prefix_of(1), "b?")).stats;
  EXPECT_EQ(second.cache, "hit");
  EXPECT_EQ(second.depth, 2);
  EXPECT_EQ(second.prefix_len, 40);
  EXPECT_EQ(second.cached_tokens, 40);
  EXPECT_EQ(engine->cache_stats().made, 1);
  EXPECT_EQ(engine->cache_stats().hits, 1);
  EXPECT_EQ(engine->cache_stats().misses, 1);
}

TEST_F(PrefixCacheTest, AnswersAreThoseOfNoCacheAsLongAsTheDepthIsSafe) {
  start();
  GenerateRequest off = request_of(prefix_of(1), "what?");
  off.cache.policy = "off";
  std::string without, with;
  EXPECT_EQ(ask(off, &without).stats.cache, "off");
  ask(request_of(prefix_of(1), "x"));
  ask(request_of(prefix_of(1), "y"));
  EXPECT_EQ(ask(request_of(prefix_of(1), "what?"), &with).stats.cache, "hit");
  EXPECT_EQ(with, without);
  control->safe_depth = 1;  // the fake is really asked through the entry
  std::string spoiled;
  ask(request_of(prefix_of(1), "what?"), &spoiled);
  EXPECT_NE(spoiled, without);
}

TEST_F(PrefixCacheTest, ManyAtOnceMakeOneEntry) {
  start();
  control->forward_ms = 3;
  std::vector<GenerateRequest> job;
  for (int i = 0; i < 8; ++i) job.push_back(request_of(prefix_of(1), std::to_string(i)));
  ResponseStream stream = engine->submit(std::move(job));
  std::map<int, std::string> state;
  while (auto update = stream.next()) state[update->index] = update->stats.cache;
  for (const auto& [index, cache_state] : state) EXPECT_EQ(cache_state, "hit") << index;
  EXPECT_EQ(control->num_entries_made, 1);
}

TEST_F(PrefixCacheTest, TenantsWithDifferentSaltsShareNothing) {
  start();
  for (int i = 0; i < 3; ++i) {
    GenerateRequest a = request_of(prefix_of(1), std::to_string(i));
    a.cache.salt = "a";
    ask(a);
  }
  GenerateRequest b = request_of(prefix_of(1), "b");
  b.cache.salt = "b";
  EXPECT_EQ(cache_state(b), "miss");
  EXPECT_EQ(cache_state(request_of(prefix_of(1), "c")), "miss");
  const CacheReport report = engine->cache_report();
  ASSERT_EQ(report.entries.size(), 1u);
  EXPECT_EQ(report.entries[0].salt.size(), 8u) << "a hash, not the salt itself";
  EXPECT_EQ(report.entries[0].hits, 2);
}

TEST_F(PrefixCacheTest, RawPromptsFindWhereTheyPart) {
  start();
  const auto raw = [&](const std::string& question) {
    GenerateRequest request = request_of(prefix_of(7, 50), question);
    request.prefix_boundaries.clear();
    return request;
  };
  ask(raw("abc"));
  ask(raw("xyz"));
  const GenerationStats third = ask(raw("q")).stats;
  EXPECT_EQ(third.cache, "hit");
  EXPECT_EQ(third.prefix_len, 48) << "whole chunks of 16 tokens";
}

TEST_F(PrefixCacheTest, ThePrefixLengthOfARequestCounts) {
  start();
  for (int i = 0; i < 2; ++i) {
    GenerateRequest request = request_of(prefix_of(1, 60), std::to_string(i));
    request.cache.prefix_len = 48;
    EXPECT_EQ(ask(request).stats.prefix_len, 48);
  }
  GenerateRequest none = request_of(prefix_of(1, 60), "z");
  none.cache.prefix_len = 0;
  EXPECT_EQ(ask(none).stats.prefix_len, 0);
  GenerateRequest beyond = request_of(prefix_of(1, 60), "z");
  beyond.cache.prefix_len = 62;
  std::vector<GenerateRequest> job{beyond};
  try {
    engine->submit(std::move(job));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.param(), "cache.prefix_len");
  }
}

TEST_F(PrefixCacheTest, AGrowingConversationMakesFewEntries) {
  start();
  std::string talk = prefix_of(1, 60);
  GenerateRequest request;
  for (int turn = 0; turn < 12; ++turn) {
    request = request_of(talk, "question" + std::to_string(turn));
    for (int i = 60; i < static_cast<int>(talk.size()); i += 20) {
      request.prefix_boundaries.insert(request.prefix_boundaries.end() - 1, i);
    }
    ask(request);
    talk += "a turn of 20 letters";
  }
  EXPECT_EQ(ask(request).stats.cache, "hit");
  EXPECT_LE(control->num_entries_made, 7);
}

TEST_F(PrefixCacheTest, TwoHundredPrefixesStayInABudgetOfTwenty) {
  // The fake's entry takes prefix_len * max_depth bytes.
  cache.cache_bytes = 20 * 40 * 2;
  start();
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 200; ++i) {
      ask(request_of(prefix_of(i), "a" + std::to_string(round)));
      ASSERT_LE(engine->cache_stats().bytes, cache.cache_bytes);
    }
  }
  const CacheReport report = engine->cache_report();
  EXPECT_LE(control->most_entry_bytes, cache.cache_bytes);
  EXPECT_EQ(report.entries.size(), 20u);
  EXPECT_EQ(report.bytes, control->entry_bytes);
  EXPECT_EQ(report.made, control->num_entries_made);
  EXPECT_EQ(report.made - report.evictions, control->num_entries);
  EXPECT_EQ(report.hits + report.misses, 600);
}

TEST_F(PrefixCacheTest, APrefixOverTheBudgetIsRefusedAndTheRequestGoesOn) {
  cache.cache_bytes = 79;
  start();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(cache_state(request_of(prefix_of(1), "?")), "miss");
  EXPECT_EQ(control->num_entries_made, 0);
  EXPECT_GT(engine->cache_report().refused, 0);
}

TEST_F(PrefixCacheTest, PinnedPrefixesAreThereAtOnceAndStay) {
  cache.cache_bytes = 2 * 40 * 2;
  start();
  const std::string pinned = prefix_of(99);
  engine->warm_prefix({pinned.begin(), pinned.end()}, true).get();
  EXPECT_EQ(cache_state(request_of(pinned, "first")), "hit");
  for (int i = 0; i < 20; ++i) {
    for (int k = 0; k < 3; ++k) ask(request_of(prefix_of(i), std::to_string(k)));
  }
  EXPECT_EQ(cache_state(request_of(pinned, "again")), "hit");
  EXPECT_EQ(engine->clear_cache(), 2);
  EXPECT_EQ(cache_state(request_of(pinned, "after")), "hit") << "made anew";
  EXPECT_THROW(engine->warm_prefix(std::vector<TokenId>(500, 'x'), true), Error);
}

TEST_F(PrefixCacheTest, AWarmPrefixIsThereForItsFirstRequestAndGoesAsOthersDo) {
  cache.cache_bytes = 2 * 40 * 2;
  start();
  control->forward_ms = 3;
  const std::string first = prefix_of(1), second = prefix_of(2);
  auto warmed = engine->warm_prefix({first.begin(), first.end()});
  auto as_well = engine->warm_prefix({first.begin(), first.end()});
  auto another = engine->warm_prefix({second.begin(), second.end()});
  warmed.get();
  as_well.get();
  another.get();
  EXPECT_EQ(control->num_entries_made, 2);
  EXPECT_EQ(engine->stats().completion_tokens, 0) << "no request was needed";
  EXPECT_EQ(cache_state(request_of(first, "a")), "hit");
  engine->warm_prefix({first.begin(), first.end()}).get();
  EXPECT_EQ(control->num_entries_made, 2) << "it is there";
  EXPECT_FALSE(engine->cache_report().entries.at(0).pinned);
  engine->warm_prefix({first.begin(), first.end()}, true).get();
  EXPECT_EQ(control->num_entries_made, 2) << "it is only kept from now on";
  for (int i = 3; i < 20; ++i) {
    for (int k = 0; k < 3; ++k) ask(request_of(prefix_of(i), std::to_string(k)));
  }
  EXPECT_EQ(cache_state(request_of(first, "b")), "hit");
  EXPECT_EQ(cache_state(request_of(second, "b")), "miss") << "it went for others";
}

TEST_F(PrefixCacheTest, WhoWarmsAPrefixHearsWhyItCantBeMade) {
  start();
  const std::string prefix = prefix_of(1), other = prefix_of(2);
  control->fail_forwards = 1;
  auto failed = engine->warm_prefix({prefix.begin(), prefix.end()});
  EXPECT_THROW(failed.get(), Error);
  EXPECT_EQ(control->num_entries, 0);
  EXPECT_THROW(engine->warm_prefix({}), Error);
  control->forward_ms = 200;
  ResponseStream stream = engine->submit({request_of(other, "x")});  // keeps the thread busy
  auto never = engine->warm_prefix({other.begin(), other.end()});
  engine->stop(std::chrono::milliseconds(0));
  try {
    never.get();  // or it was made just before
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDraining);
  }
  EXPECT_THROW(engine->warm_prefix({other.begin(), other.end()}), Error);
}

TEST_F(PrefixCacheTest, PinnedPrefixesAreThereForEverySaltAndOthersForTheirOwn) {
  start();
  const std::string pinned = prefix_of(99), other = prefix_of(7);
  engine->warm_prefix({pinned.begin(), pinned.end()}, true).get();
  GenerateRequest salted = request_of(pinned, "first");
  salted.cache.salt = "tenant";
  EXPECT_EQ(cache_state(salted), "hit");
  for (int i = 0; i < 3; ++i) ask(request_of(other, std::to_string(i)));
  EXPECT_EQ(cache_state(request_of(other, "x")), "hit");
  salted = request_of(other, "x");
  salted.cache.salt = "tenant";
  EXPECT_EQ(cache_state(salted), "miss");
}

TEST_F(PrefixCacheTest, ClearForgetsEntriesAndPrompts) {
  start();
  for (int i = 0; i < 3; ++i) ask(request_of(prefix_of(1), std::to_string(i)));
  EXPECT_EQ(engine->clear_cache(), 1);
  EXPECT_EQ(control->num_entries, 0);
  EXPECT_EQ(cache_state(request_of(prefix_of(1), "x")), "miss");
}

TEST_F(PrefixCacheTest, AForwardThatFailsWhileAnEntryIsMadeCostsOnlyTheEntry) {
  start();
  ask(request_of(prefix_of(1), "a"));
  control->fail_forwards = 1;  // the request waits for its entry, which is alone in it
  EXPECT_EQ(cache_state(request_of(prefix_of(1), "b")), "miss");
  EXPECT_EQ(control->num_entries, 0);
  EXPECT_EQ(cache_state(request_of(prefix_of(1), "c")), "miss") << "not tried again";
}

TEST_F(PrefixCacheTest, AnEntryThatCantBeFilledOrLoadedCostsOnlyItself) {
  start();
  ask(request_of(prefix_of(1), "a"));
  control->fail_fills = 1;
  EXPECT_EQ(cache_state(request_of(prefix_of(1), "b")), "miss");
  EXPECT_EQ(control->num_entries, 0);
  ask(request_of(prefix_of(2), "a"));
  control->fail_loads = 1;
  GenerateRequest off = request_of(prefix_of(2), "b");
  off.cache.policy = "off";
  std::string without, computed;
  ask(off, &without);
  EXPECT_EQ(ask(request_of(prefix_of(2), "b"), &computed).stats.cache, "miss");
  EXPECT_EQ(computed, without);
  EXPECT_EQ(control->num_entries, 0);
  EXPECT_EQ(engine->stats().queued, 0);
  EXPECT_EQ(control->num_open_slabs, 0);
}

TEST_F(PrefixCacheTest, EntriesThatCantBeMadeCostNoRequestAndNoRoom) {
  start(4096);
  const std::string pinned = prefix_of(99);
  engine->warm_prefix({pinned.begin(), pinned.end()}, true).get();
  ask(request_of(pinned, "a"));
  engine->clear_cache();
  control->fail_creates = 50;  // the pinned one is tried again before every forward
  for (int i = 0; i < 40; ++i) ask(request_of(prefix_of(i / 2), std::to_string(i)));
  control->fail_creates = 0;
  EXPECT_EQ(cache_state(request_of(pinned, "b")), "hit") << "and comes back when it can";
  engine->stop(std::chrono::milliseconds(1000));
  EXPECT_EQ(control->num_open_slabs, 0);
}

TEST_F(PrefixCacheTest, EntriesKeepToTheRowBudget) {
  settings.max_rows_per_forward = 300;
  start();
  control->forward_ms = 3;
  for (const char* use : {"a", "b"}) {
    std::vector<GenerateRequest> job;
    for (int i = 0; i < 12; ++i) job.push_back(request_of(prefix_of(i, 100), use));
    ResponseStream stream = engine->submit(std::move(job));
    while (auto update = stream.next()) EXPECT_NE(update->finish, FinishReason::kError);
  }
  EXPECT_EQ(engine->cache_stats().made, 12);
  EXPECT_LE(control->max_rows_seen, 300 + 117) << "and one canvas, which always goes on";
}

TEST_F(PrefixCacheTest, APinnedPrefixComesBackWhenThereIsRoom) {
  cache.cache_bytes = 40 * 2;
  start();
  const std::string pinned = prefix_of(99);
  engine->warm_prefix({pinned.begin(), pinned.end()}, true).get();
  GenerateRequest slow = request_of(pinned, "slow");
  slow.gen_length = 200;
  slow.decode.steps = 200;
  control->end_one_in = 0;
  control->forward_ms = 1;
  std::vector<GenerateRequest> job{slow};
  ResponseStream stream = engine->submit(std::move(job));
  while (stream.next()->tokens.empty()) continue;
  engine->clear_cache();  // held by the slow one, so that there is no room for another
  EXPECT_EQ(cache_state(request_of(pinned, "meanwhile")), "miss");
  while (stream.next()) continue;
  ask(request_of("another ", "question"));
  EXPECT_EQ(cache_state(request_of(pinned, "after")), "hit");
  EXPECT_TRUE(engine->cache_report().entries.at(0).pinned);
}

TEST_F(PrefixCacheTest, TheRefreshDepthOfARequestHoldsWithNothingShared) {
  start();
  GenerateRequest request = request_of("x", "a question that nobody had before");
  request.prefix_boundaries.clear();
  request.cache.refresh_depth = 3;
  for (int i = 0; i < 2; ++i) EXPECT_EQ(ask(request).stats.refresh_depth, 3) << i;
}

TEST_F(PrefixCacheTest, RefreshesEnterFromTheRequestsOwnStates) {
  cache.start.plan = {IntraCache::kAdaptive, 16, 1, 0};
  start();
  ask(request_of(prefix_of(1), "a"));
  GenerateRequest request = request_of(prefix_of(1), "b");
  request.cache.refresh_depth = 3;
  EXPECT_EQ(ask(request).stats.refresh_depth, 3);
  EXPECT_EQ(control->num_entries_made, 2) << "the prefix and, for this request, its own states";
  EXPECT_EQ(control->num_entries, 1);
  request.cache.refresh_depth = 1;
  EXPECT_EQ(ask(request).stats.refresh_depth, 1) << "what is behind the prefix enters there";
  EXPECT_EQ(control->num_entries_made, 3);
  request.decode.intra_cache = IntraCache::kNone;
  ask(request);
  EXPECT_EQ(control->num_entries_made, 3) << "nothing enters below the depth of reuse";
  request.cache.refresh_depth = 4;
  EXPECT_EQ(ask(request).stats.refresh_depth, 4) << "all layers: nothing is computed again";
  EXPECT_EQ(control->num_entries_made, 3);
  EXPECT_EQ(engine->cache_report().bytes, control->entry_bytes);
}

TEST_F(PrefixCacheTest, WithoutRoomForOwnStatesRefreshesNeedNone) {
  control->boundary_bytes = 1;
  cache.cache_bytes = 40 * (2 + 1);  // the stored prefix and no more
  start();
  ask(request_of(prefix_of(1), "a"));
  GenerateRequest request = request_of(prefix_of(1), "b");
  request.cache.refresh_depth = 3;
  const GenerationStats stats = ask(request).stats;
  EXPECT_EQ(stats.cache, "hit");
  EXPECT_EQ(stats.refresh_depth, 0);
  EXPECT_EQ(control->most_entry_bytes, cache.cache_bytes);
}

TEST_F(PrefixCacheTest, WhatIsNotPossibleHereIsRefused) {
  start();
  const auto refused_field = [&](auto&& change) {
    std::vector<GenerateRequest> job{request_of(prefix_of(1), "a")};
    change(job[0].cache);
    try {
      engine->submit(std::move(job));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidRequest);
      return error.param();
    }
    return std::string();
  };
  using C = CacheParams;
  EXPECT_EQ(refused_field([](C& c) { c.policy = "table"; }), "cache.policy");
  EXPECT_EQ(refused_field([](C& c) { c.depth = 4; }), "") << "all layers";
  EXPECT_EQ(refused_field([](C& c) { c.depth = 5; }), "cache.depth");
  EXPECT_EQ(refused_field([](C& c) { c.refresh_depth = 4; }), "");
  EXPECT_EQ(refused_field([](C& c) { c.refresh_depth = 5; }), "cache.refresh_depth");
}

/// With a budget that lets every request be probed, so that what is learned is seen soon.
class MeasuredTest : public PrefixCacheTest {
 protected:
  MeasuredTest() {
    cache.policy = "measured";
    cache.probe_budget = 1;
  }
  /// Depth of the last of `count` requests of a prefix, or of the one before if that is deeper: one
  /// of them may have been probed.
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
  GenerationStats whole;
  for (int i = 0; i < 60; ++i) {
    const int64_t before = engine->cache_stats().probe_row_layers;
    whole = ask(request).stats;
    ASSERT_LT(engine->cache_stats().probe_row_layers - before, whole.row_layers / 3)
        << "the first of eight blocks, and a forward";
  }
  EXPECT_GT(engine->cache_stats().probe_row_layers, 0);
  EXPECT_EQ(engine->cache_stats().probes, 0);
  EXPECT_EQ(whole.depth, 0);
}

TEST_F(MeasuredTest, ProbesStayWithinTheBudget) {
  cache.probe_budget = 0.05;
  control->safe_depth = 0;  // nothing is ever saved
  start();
  for (int i = 0; i < 400; ++i) {
    depth_after(1);
    const auto probes = static_cast<double>(engine->cache_stats().probe_row_layers);
    const auto all = static_cast<double>(engine->stats().row_layers);
    ASSERT_LE(probes, cache.probe_budget * (all - probes)) << i;
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
  const auto folder = std::filesystem::temp_directory_path() / "bicached_state_test";
  std::filesystem::remove_all(folder);
  cache.state_dir = folder.string();
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

TEST_F(MeasuredTest, ABrokenStateFileIsKeptAsideAndCostsOnlyWhatItHeld) {
  const auto folder = std::filesystem::temp_directory_path() / "bicached_broken_state_test";
  for (const char* text : {"", "{", "[]", R"({"format": "bicached probes 1"})", "\x00\xff"}) {
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
    cache.state_dir = folder.string();
    const auto file = folder / "probes-fake.json";
    std::ofstream(file) << text;
    start();
    EXPECT_FALSE(std::filesystem::exists(file)) << text;
    EXPECT_TRUE(std::filesystem::exists(file.string() + ".broken")) << text;
    EXPECT_EQ(depth_after(1), 0);
    engine.reset();
  }
  std::filesystem::remove_all(folder);
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
