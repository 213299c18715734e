// What the engine does with stored prefixes, in any order: the accounts stay in balance.
#include <vector>

#include "cache_index/prefix_store.h"
#include "fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bicached;
  Reader reader(data, size);
  constexpr int64_t kBudget = 1000;
  PrefixStore store(kBudget, "fuzz");
  EntryId next = 0;
  int64_t reserved = 0;
  std::vector<StoredPrefix*> users;
  const auto erase = [&](EntryId id) { store.erase(id); };
  while (!reader.is_empty()) {
    const int what = reader.byte() % 7, which = reader.byte();
    const std::vector<TokenId> ids{which % 16, which / 16};
    const std::string salt = which % 3 == 0 ? "tenant" : "";
    const Hash128 key = store.key_of(salt, ids);
    StoredPrefix* found = store.find(key, salt, ids);
    if (what == 0 && !store.has_key(key)) {
      const int64_t bytes = 1 + reader.byte() * 2;
      const auto victims = store.room_for(bytes);
      if (!victims) continue;
      for (const EntryId id : *victims) erase(id);
      StoredPrefix prefix;
      prefix.key = key;
      prefix.salt = salt;
      prefix.ids = ids;
      prefix.entry = next++;
      prefix.bytes = bytes;
      prefix.making_cost = reader.byte();
      prefix.ready = reader.byte() % 4 != 0;
      prefix.pinned = reader.byte() % 8 == 0;
      StoredPrefix& stored = store.insert(std::move(prefix));
      require(store.find(key, salt, ids) == &stored, "what is stored is found");
    } else if (what == 1 && found && found->ready) {
      store.acquire(*found);
      users.push_back(found);
    } else if (what == 2 && !users.empty()) {
      StoredPrefix* user = users[static_cast<size_t>(which) % users.size()];
      users.erase(users.begin() + which % static_cast<int>(users.size()));
      store.count_saved(*user, which);
      store.release(*user);
      if (user->doomed && user->num_users == 0) erase(user->entry);
    } else if (what == 3 && found) {
      store.doom(*found);
      require(!store.has_key(key), "nobody finds what is doomed");
      if (found->num_users == 0) erase(found->entry);
    } else if (what == 4) {
      for (const EntryId id : store.droppable(which % 2 == 0)) erase(id);
    } else if (what == 5) {
      const auto victims = store.room_for(which);
      if (!victims) continue;
      for (const EntryId id : *victims) erase(id);
      store.reserve(which);
      reserved += which;
    } else if (what == 6) {
      store.reserve(-reserved);
      reserved = 0;
      if (found) found->ready = true;
    }
    store.check_integrity();
    require(store.bytes() <= kBudget, "the budget holds");
  }
  return 0;
}
