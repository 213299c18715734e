#include "model/slab_allocator.h"

#include <string>
#include <utility>

#include "bicached/error.h"

namespace bicached {

SlabAllocator::SlabAllocator(int64_t capacity_tokens)
    : capacity_(capacity_tokens), free_(capacity_tokens) {
  if (capacity_ > 0) holes_[0] = capacity_;
}

std::optional<SlabId> SlabAllocator::open(int64_t num_tokens) {
  if (num_tokens < 1) return std::nullopt;
  auto best = holes_.end();
  for (auto it = holes_.begin(); it != holes_.end(); ++it) {
    if (it->second >= num_tokens && (best == holes_.end() || it->second < best->second)) best = it;
  }
  if (best == holes_.end()) return std::nullopt;
  const Range range{best->first, num_tokens};
  Holes left{{range.begin, num_tokens}};
  used_.emplace(next_, Used{range, left.extract(left.begin())});
  if (best->second == num_tokens) {
    holes_.erase(best);
  } else {
    auto rest = holes_.extract(best);
    rest.key() += num_tokens;
    rest.mapped() -= num_tokens;
    holes_.insert(std::move(rest));
  }
  free_ -= num_tokens;
  return next_++;
}

void SlabAllocator::close(SlabId slab) {
  free_ += range(slab).num_tokens;
  auto closed = used_.extract(slab);
  auto hole = holes_.insert(std::move(closed.mapped().hole)).position;
  const auto after = std::next(hole);
  if (after != holes_.end() && hole->first + hole->second == after->first) {
    hole->second += after->second;
    holes_.erase(after);
  }
  if (hole != holes_.begin()) {
    const auto before = std::prev(hole);
    if (before->first + before->second == hole->first) {
      before->second += hole->second;
      holes_.erase(hole);
    }
  }
}

const SlabAllocator::Range& SlabAllocator::range(SlabId slab) const {
  const auto it = used_.find(slab);
  if (it == used_.end()) {
    throw Error(ErrorCode::kInternal, "slab " + std::to_string(slab) + " is not open");
  }
  return it->second.range;
}

void SlabAllocator::check_integrity() const {
  std::map<int64_t, int64_t> pieces = holes_;
  int64_t free = 0;
  for (const auto& [begin, length] : holes_) free += length;
  for (const auto& [id, used] : used_) pieces.emplace(used.range.begin, used.range.num_tokens);
  int64_t end = 0;
  for (const auto& [begin, length] : pieces) {
    if (begin != end) break;
    end += length;
  }
  if (end != capacity_ || free != free_ || pieces.size() != holes_.size() + used_.size()) {
    throw Error(ErrorCode::kInternal, "the KV pool's slabs do not tile it");
  }
}

}  // namespace bicached
