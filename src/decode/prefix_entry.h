#pragma once

#include <span>

#include "bicached/denoiser.h"

namespace bicached {

/// The row groups that make a prefix entry of K/V below `max_depth`: the prefix as a canvas of its
/// own, keys limited to it, or to the end of a row's block where the model attends by blocks. They
/// run in a packed forward beside other work; afterwards `fill_entry(entry, slab)` takes the K/V.
void append_prefix_entry(Forward& forward, std::span<const TokenId> prefix_ids, SlabId slab,
                         EntryId entry, int max_depth, int attention_block);

}  // namespace bicached
