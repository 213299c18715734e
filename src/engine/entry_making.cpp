#include "engine/entry_making.h"

#include <utility>

#include "decode/prefix_entry.h"

namespace bicached {

void EntryMaking::append_to(Forward& forward) const {
  append_prefix_entry(forward, stored_.ids, slab_.id(), stored_.entry, stored_.spec.max_depth,
                      denoiser_.info().attention_block);
}

void EntryMaking::commit(std::span<const RowResult>) {
  denoiser_.fill_entry(stored_.entry, slab_.id());
  end(nullptr);
}

void EntryMaking::fail(ErrorCode code, const std::string& why) {
  const Error failure(code, why);
  end(&failure);
}

void EntryMaking::end(const Error* failure) {
  slab_.reset();
  for (const Done& done : std::exchange(done_, {})) done(failure);
}

}  // namespace bicached
