#pragma once

#include <map>

#include "model/kv_pool.h"
#include "model/packed_forward.h"

namespace bicached {

/// The tensors of cached prefixes. Engine thread only.
class PrefixEntries final : public BoundaryStates {
 public:
  PrefixEntries(const ModelConfig& config, KvPool& pool);

  EntryId create(const EntrySpec& spec);
  /// K and V of layers < max_depth, positions [0, P), out of a slab.
  void fill(EntryId entry, SlabId from);
  /// K and V of layers < depth to positions [0, P) of a slab. depth <= max_depth.
  void load(EntryId entry, SlabId to, int depth) const;
  void destroy(EntryId entry);
  /// Exactly what `create` allocates.
  int64_t bytes(const EntrySpec& spec) const;

  at::Tensor load(EntryId entry, int layer) const override;
  void capture(EntryId entry, int layer, const at::Tensor& rows) override;

 private:
  struct Entry {
    EntrySpec spec;
    at::Tensor keys;                   // [max_depth, P, G, D], RoPE applied
    at::Tensor values;                 // [max_depth, P, G, D]
    std::map<int, at::Tensor> states;  // boundary -> [P, d]
  };
  const Entry& find(EntryId entry) const;

  const ModelConfig& config_;
  KvPool& pool_;
  std::map<EntryId, Entry> entries_;
  EntryId next_ = 0;
};

}  // namespace bicached
