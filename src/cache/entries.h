#pragma once

#include <map>

#include "model/kv_pool.h"
#include "model/packed_forward.h"

namespace bicached {

/// The tensors of cached prefixes. Engine thread only.
class PrefixEntries final : public BoundaryStates {
 public:
  PrefixEntries(const ModelConfig& config, KvPool& pool);

  /// Contents are undefined until `fill` and a forward that captures. Throws kInternal for a spec
  /// that the model can't have.
  EntryId create(const EntrySpec& spec);
  /// K and V of layers < max_depth, positions [0, P), out of a slab.
  void fill(EntryId entry, SlabId from);
  /// K and V of layers < depth to positions [0, P) of a slab. depth <= max_depth.
  void load(EntryId entry, SlabId to, int depth) const;
  void destroy(EntryId entry);
  /// Exactly what `create` allocates.
  int64_t bytes(const EntrySpec& spec) const;

  at::Tensor states(EntryId entry, int layer) const override;

  int64_t bytes_held() const;
  /// Throws kInternal unless the tensors held are what the specs say, byte by byte.
  void check_integrity() const;

 private:
  struct Entry {
    EntrySpec spec;
    at::Tensor keys;                   // [max_depth, P, G, D], RoPE applied
    at::Tensor values;                 // [max_depth, P, G, D]
    std::map<int, at::Tensor> states;  // boundary -> [P, d]
  };
  const Entry& find(EntryId entry) const;
  /// Where the entry's prefix begins in the pool, if it were this slab's.
  int64_t pool_begin(const Entry& entry, SlabId slab) const;

  const ModelConfig& config_;
  KvPool& pool_;
  std::map<EntryId, Entry> entries_;
  EntryId next_ = 0;
};

}  // namespace bicached
