#pragma once

#include <span>

#include "bicached/denoiser.h"

namespace bicached {

/// The row group that makes a prefix entry of K/V below `max_depth`: the prefix as a canvas of its
/// own, keys limited to it. Runs in a packed forward beside other work; afterwards
/// `fill_entry(entry, slab)` takes the K/V.
RowGroup prefix_entry_group(std::span<const TokenId> prefix_ids, SlabId slab, EntryId entry,
                            int max_depth);

}  // namespace bicached
