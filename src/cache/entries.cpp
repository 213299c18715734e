#include "cache/entries.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <functional>
#include <string>

#include "bicached/error.h"

namespace bicached {

PrefixEntries::PrefixEntries(const ModelConfig& config, KvPool& pool)
    : config_(config), pool_(pool) {}

EntryId PrefixEntries::create(const EntrySpec& spec) {
  const auto& b = spec.boundaries;
  const auto is_outside = [&](int at) { return at < 1 || at >= config_.num_layers; };
  if (spec.prefix_len < 1 || spec.max_depth < 0 || spec.max_depth > config_.num_layers ||
      std::ranges::any_of(b, is_outside) ||
      std::ranges::adjacent_find(b, std::greater_equal<>()) != b.end()) {
    throw Error(ErrorCode::kInternal,
                "an entry needs a prefix, max_depth in [0, layers] and ascending boundaries in "
                "[1, layers)");
  }
  Entry entry;
  entry.spec = spec;
  const at::TensorOptions options = pool_.keys(0).options();
  entry.keys = at::empty({spec.max_depth, spec.prefix_len, config_.num_kv_heads, config_.head_size},
                         options);
  entry.values = at::empty_like(entry.keys);
  for (const int boundary : spec.boundaries) {
    entry.states[boundary] = at::empty({spec.prefix_len, config_.hidden_size}, options);
  }
  entries_.emplace(next_, std::move(entry));
  return next_++;
}

void PrefixEntries::fill(EntryId id, SlabId from) {
  const Entry& entry = find(id);
  const int64_t begin = pool_begin(entry, from);
  const int64_t length = entry.spec.prefix_len;
  for (int layer = 0; layer < entry.spec.max_depth; ++layer) {
    entry.keys.select(0, layer).copy_(pool_.keys(layer).narrow(0, begin, length));
    entry.values.select(0, layer).copy_(pool_.values(layer).narrow(0, begin, length));
  }
}

void PrefixEntries::load(EntryId id, SlabId to, int depth) const {
  const Entry& entry = find(id);
  if (depth < 0 || depth > entry.spec.max_depth) {
    throw Error(ErrorCode::kInternal, "an entry of depth " + std::to_string(entry.spec.max_depth) +
                                          " was asked for depth " + std::to_string(depth));
  }
  const int64_t begin = pool_begin(entry, to);
  const int64_t length = entry.spec.prefix_len;
  for (int layer = 0; layer < depth; ++layer) {
    pool_.keys(layer).narrow(0, begin, length).copy_(entry.keys.select(0, layer));
    pool_.values(layer).narrow(0, begin, length).copy_(entry.values.select(0, layer));
  }
}

void PrefixEntries::destroy(EntryId id) {
  find(id);  // an id that is none is a defect
  entries_.erase(id);
}

int64_t PrefixEntries::bytes(const EntrySpec& spec) const {
  const auto element = static_cast<int64_t>(c10::elementSize(pool_.keys(0).scalar_type()));
  const int64_t kv = int64_t{2} * spec.max_depth * config_.num_kv_heads * config_.head_size;
  const int64_t states = static_cast<int64_t>(spec.boundaries.size()) * config_.hidden_size;
  return spec.prefix_len * (kv + states) * element;
}

int64_t PrefixEntries::bytes_held() const {
  int64_t held = 0;
  for (const auto& [id, entry] : entries_) held += bytes(entry.spec);
  return held;
}

at::Tensor PrefixEntries::states(EntryId id, int layer) const {
  const Entry& entry = find(id);
  const auto state = entry.states.find(layer);
  return state == entry.states.end() ? at::Tensor() : state->second;
}

const PrefixEntries::Entry& PrefixEntries::find(EntryId id) const {
  const auto it = entries_.find(id);
  if (it == entries_.end()) {
    throw Error(ErrorCode::kInternal, "entry " + std::to_string(id) + " does not exist");
  }
  return it->second;
}

int64_t PrefixEntries::pool_begin(const Entry& entry, SlabId slab) const {
  const SlabAllocator::Range& range = pool_.slabs().range(slab);
  if (range.num_tokens < entry.spec.prefix_len) {
    throw Error(ErrorCode::kInternal, "a slab of " + std::to_string(range.num_tokens) +
                                          " tokens can't hold a prefix of " +
                                          std::to_string(entry.spec.prefix_len));
  }
  return range.begin;
}

void PrefixEntries::check_integrity() const {
  for (const auto& [id, entry] : entries_) {
    auto own = static_cast<int64_t>(entry.keys.nbytes() + entry.values.nbytes());
    for (const auto& [layer, state] : entry.states) own += static_cast<int64_t>(state.nbytes());
    if (own != bytes(entry.spec)) {
      throw Error(ErrorCode::kInternal, "entry " + std::to_string(id) + " has other bytes");
    }
  }
}

}  // namespace bicached
