#include "decode/prefix_entry.h"

namespace bicached {

RowGroup prefix_entry_group(std::span<const TokenId> prefix_ids, SlabId slab, EntryId entry,
                            int max_depth) {
  RowGroup group;
  group.slab = slab;
  group.end = group.key_end = static_cast<int>(prefix_ids.size());
  group.tokens.assign(prefix_ids.begin(), prefix_ids.end());
  group.leave_layer = max_depth;
  group.capture_to = entry;
  return group;
}

}  // namespace bicached
