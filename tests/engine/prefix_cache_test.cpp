// Who shares what with whom.
#include "engine/prefix_cache_fixture.h"

#include <map>

#include "bicached/error.h"

namespace bicached {
namespace {

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

}  // namespace
}  // namespace bicached
