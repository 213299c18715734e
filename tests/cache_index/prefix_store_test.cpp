#include "cache_index/prefix_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <vector>

namespace bicached {
namespace {

using Ids = std::vector<TokenId>;

StoredPrefix prefix_of(const PrefixStore& store, const std::string& salt, const Ids& ids,
                       EntryId entry, int64_t bytes = 10) {
  StoredPrefix prefix;
  prefix.key = store.key_of(salt, ids);
  prefix.salt = salt;
  prefix.ids = ids;
  prefix.entry = entry;
  prefix.bytes = bytes;
  prefix.making_cost = bytes;
  prefix.ready = true;
  return prefix;
}

StoredPrefix* find(PrefixStore& store, const std::string& salt, const Ids& ids) {
  return store.find(store.key_of(salt, ids), salt, ids);
}

TEST(PrefixStore, TwoTenantsNeverShareAnEntry) {
  PrefixStore store(1000, "model");
  store.insert(prefix_of(store, "tenant a", {1, 2, 3}, 1));
  EXPECT_NE(find(store, "tenant a", Ids{1, 2, 3}), nullptr);
  EXPECT_EQ(find(store, "tenant b", Ids{1, 2, 3}), nullptr);
  EXPECT_EQ(find(store, "", Ids{1, 2, 3}), nullptr);
}

TEST(PrefixStore, EqualHashWithOtherIdsIsAMiss) {
  PrefixStore store(1000, "model");
  const StoredPrefix& stored = store.insert(prefix_of(store, "", {1, 2, 3}, 1));
  EXPECT_EQ(store.find(stored.key, "", Ids{1, 2, 3}), &stored);
  EXPECT_EQ(store.find(stored.key, "", Ids{1, 2, 4}), nullptr);
  EXPECT_EQ(store.find(stored.key, "salt", Ids{1, 2, 3}), nullptr);
}

TEST(PrefixStore, KeysOfBeginningsAreThoseOfTheBeginningsAlone) {
  const PrefixStore store(1, "model");
  const Ids ids{1, 2, 3, 4, 5};
  const std::vector<int> lengths{1, 3, 5};
  const std::vector<Hash128> keys = store.keys_of("salt", ids, lengths);
  ASSERT_EQ(keys.size(), 3u);
  EXPECT_EQ(keys[0], store.key_of("salt", Ids{1}));
  EXPECT_EQ(keys[1], store.key_of("salt", Ids{1, 2, 3}));
  EXPECT_EQ(keys[2], store.key_of("salt", ids));
  EXPECT_NE(keys[1], keys[2]);
}

TEST(PrefixStore, OtherModelsHaveOtherKeys) {
  EXPECT_NE(PrefixStore(1, "a").key_of("", Ids{1}), PrefixStore(1, "b").key_of("", Ids{1}));
}

TEST(PrefixStore, DropsWhatSavedLeastPerByte) {
  PrefixStore store(30, "model");
  StoredPrefix& useful = store.insert(prefix_of(store, "", {1}, 1));
  StoredPrefix& useless = store.insert(prefix_of(store, "", {2}, 2));
  StoredPrefix& held = store.insert(prefix_of(store, "", {3}, 3));
  store.acquire(useful);
  store.count_saved(useful, 1000);
  store.release(useful);
  store.acquire(held);
  const auto victims = store.room_for(10);
  ASSERT_TRUE(victims);
  EXPECT_EQ(*victims, std::vector<EntryId>{useless.entry});
  EXPECT_EQ(*store.room_for(20), (std::vector<EntryId>{2, 1}));
  EXPECT_FALSE(store.room_for(30)) << "one is in use";
  EXPECT_FALSE(store.room_for(31)) << "over the budget";
  useful.pinned = true;
  EXPECT_FALSE(store.room_for(20));
  store.check_integrity();
}

TEST(PrefixStore, SavingsFade) {
  PrefixStore store(20, "model");
  StoredPrefix& old = store.insert(prefix_of(store, "", {1}, 1));
  store.acquire(old);
  store.count_saved(old, 100);
  store.release(old);
  StoredPrefix& recent = store.insert(prefix_of(store, "", {2}, 2));
  for (int i = 0; i < 3000; ++i) {
    store.acquire(recent);
    store.count_saved(recent, 1);
    store.release(recent);
  }
  EXPECT_EQ(*store.room_for(10), std::vector<EntryId>{1});
}

/// The engine does this between two forwards: what is looked at must not grow with what is stored.
TEST(PrefixStore, ManyEntriesAreMadeRoomForAndDroppedOneByOne) {
  constexpr int kMany = 50000;
  PrefixStore store(10 * kMany, "model");
  for (int i = 0; i < kMany; ++i) {
    StoredPrefix& stored = store.insert(prefix_of(store, "", {i}, i));
    store.acquire(stored);
    store.count_saved(stored, (i * 7919) % kMany);
    store.release(stored);
  }
  store.check_integrity();
  std::vector<double> worths;
  for (const StoredPrefix* stored : store.most_worth(10)) worths.push_back(stored->worth);
  EXPECT_EQ(worths.size(), 10u);
  EXPECT_TRUE(std::ranges::is_sorted(worths, std::greater<>()));
  for (int i = 0; i < kMany; ++i) {
    const auto victims = store.room_for(10);
    ASSERT_TRUE(victims);
    ASSERT_EQ(victims->size(), 1u);
    EXPECT_LE(store.num_entries(), static_cast<size_t>(kMany));
    store.erase(victims->front());
    StoredPrefix& stored = store.insert(prefix_of(store, "", {kMany + i}, kMany + i));
    EXPECT_TRUE(stored.ready);
  }
  store.check_integrity();
  for (const EntryId entry : store.droppable(true)) store.erase(entry);
  EXPECT_EQ(store.num_entries(), 0u);
  EXPECT_EQ(store.bytes(), 0);
  store.check_integrity();
}

TEST(PrefixStore, ADoomedEntryIsNotFoundAgain) {
  PrefixStore store(100, "model");
  StoredPrefix& stored = store.insert(prefix_of(store, "", {1}, 1));
  store.acquire(stored);
  store.doom(stored);
  EXPECT_EQ(find(store, "", Ids{1}), nullptr);
  store.check_integrity();
  StoredPrefix& other = store.insert(prefix_of(store, "", {1}, 2));
  EXPECT_EQ(find(store, "", Ids{1}), &other) << "its key is free";
  store.erase(1);
  EXPECT_EQ(find(store, "", Ids{1}), &other);
  store.check_integrity();
  store.erase(2);
  EXPECT_EQ(store.bytes(), 0);
  store.check_integrity();
}

}  // namespace
}  // namespace bicached
