#include "cache/entries.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "bicached/error.h"

namespace bicached {

PrefixEntries::PrefixEntries(const ModelConfig& config, KvPool& pool)
    : config_(config), pool_(pool) {}

EntryId PrefixEntries::create(const EntrySpec& spec) {
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
  const int64_t begin = pool_.slabs().range(from).begin;
  for (int layer = 0; layer < entry.spec.max_depth; ++layer) {
    entry.keys.select(0, layer).copy_(pool_.keys(layer).narrow(0, begin, entry.spec.prefix_len));
    entry.values.select(0, layer).copy_(
        pool_.values(layer).narrow(0, begin, entry.spec.prefix_len));
  }
}

void PrefixEntries::load(EntryId id, SlabId to, int depth) const {
  const Entry& entry = find(id);
  if (depth > entry.spec.max_depth) {
    throw Error(ErrorCode::kInternal, "an entry of depth " + std::to_string(entry.spec.max_depth) +
                                          " was asked for depth " + std::to_string(depth));
  }
  const int64_t begin = pool_.slabs().range(to).begin;
  for (int layer = 0; layer < depth; ++layer) {
    pool_.keys(layer).narrow(0, begin, entry.spec.prefix_len).copy_(entry.keys.select(0, layer));
    pool_.values(layer)
        .narrow(0, begin, entry.spec.prefix_len)
        .copy_(entry.values.select(0, layer));
  }
}

void PrefixEntries::destroy(EntryId id) {
  find(id);
  entries_.erase(id);
}

int64_t PrefixEntries::bytes(const EntrySpec& spec) const {
  const auto element = static_cast<int64_t>(c10::elementSize(pool_.keys(0).scalar_type()));
  const int64_t kv = int64_t{2} * spec.max_depth * config_.num_kv_heads * config_.head_size;
  const int64_t states = static_cast<int64_t>(spec.boundaries.size()) * config_.hidden_size;
  return spec.prefix_len * (kv + states) * element;
}

at::Tensor PrefixEntries::load(EntryId id, int layer) const {
  const Entry& entry = find(id);
  const auto state = entry.states.find(layer);
  if (state == entry.states.end()) {
    throw Error(ErrorCode::kInternal,
                "an entry has no state before layer " + std::to_string(layer));
  }
  return state->second;
}

void PrefixEntries::capture(EntryId id, int layer, const at::Tensor& rows) {
  const Entry& entry = find(id);
  const auto state = entry.states.find(layer);
  if (state != entry.states.end()) state->second.copy_(rows.narrow(0, 0, entry.spec.prefix_len));
}

const PrefixEntries::Entry& PrefixEntries::find(EntryId id) const {
  const auto it = entries_.find(id);
  if (it == entries_.end()) {
    throw Error(ErrorCode::kInternal, "entry " + std::to_string(id) + " does not exist");
  }
  return it->second;
}

}  // namespace bicached
