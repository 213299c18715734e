#include "engine/entry_making.h"

#include "decode/prefix_entry.h"

namespace bicached {

void EntryMaking::append_to(Forward& forward) const {
  append_prefix_entry(forward, stored_.ids, slab_.id(), stored_.entry, stored_.spec.max_depth,
                      denoiser_.info().attention_block);
}

void EntryMaking::commit(std::span<const RowResult>) {
  denoiser_.fill_entry(stored_.entry, slab_.id());
  slab_.reset();
  done_(stored_, "");
}

void EntryMaking::fail(ErrorCode, const std::string& why) {
  slab_.reset();
  done_(stored_, why);
}

}  // namespace bicached
