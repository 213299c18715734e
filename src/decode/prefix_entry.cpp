#include "decode/prefix_entry.h"

#include <algorithm>

namespace bicached {

void append_prefix_entry(Forward& forward, std::span<const TokenId> prefix_ids, SlabId slab,
                         EntryId entry, int max_depth, int attention_block) {
  const int length = static_cast<int>(prefix_ids.size());
  const int step = attention_block > 0 ? attention_block : length;
  for (int begin = 0; begin < length; begin += step) {
    RowGroup& group = forward.groups.emplace_back();
    group.slab = slab;
    group.begin = begin;
    group.end = group.key_end = std::min(begin + step, length);
    group.tokens.assign(prefix_ids.begin() + begin, prefix_ids.begin() + group.end);
    group.leave_layer = max_depth;
    group.capture_to = entry;
  }
}

}  // namespace bicached
