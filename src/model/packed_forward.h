#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "model/attention.h"
#include "model/forward_plan.h"
#include "model/kv_pool.h"
#include "model/row_ops.h"
#include "model/weights.h"

namespace bicached {

/// Where rows that enter late take their hidden state from, and where captured states go.
class BoundaryStates {
 public:
  virtual ~BoundaryStates() = default;
  /// [P, d]: the states before layer `layer`, to read or to fill. Undefined: the entry keeps none.
  virtual at::Tensor states(EntryId entry, int layer) const = 0;
};

/// Sees inner tensors while a forward runs; for comparison with reference implementations. `name`
/// as in the golden files: "embedding", "layers.0.q_pre_rope", ...; rows in packed order; valid
/// only during the call. While one is set, all rows run through the last layer.
using TensorObserver = std::function<void(const std::string& name, const at::Tensor& value)>;

/// The transformer over packed rows of many canvases: the one forward of the engine (DESIGN 2).
///
/// Engine thread only, in inference mode. Keeps scratch memory of the largest forward so far.
class PackedForward {
 public:
  /// `config` and `weights` must outlive it.
  PackedForward(const ModelConfig& config, const ModelWeights& weights, KvPool& pool);

  /// Runs all layers; K and V of every row go to its slab. Returns the hidden states of
  /// forward.logit_rows, in their order, after the final norm: [rows, d]. Throws kInternal for a
  /// forward that breaks the rules of `RowGroup`, before anything runs.
  at::Tensor run(const Forward& forward, const BoundaryStates& states);

  /// Rows through the head: float32 [rows, V].
  at::Tensor logits(const at::Tensor& hidden) const;

  void set_observer(TensorObserver observer) { observer_ = std::move(observer); }

 private:
  struct SegmentIndex;
  /// Grow-only buffers of one forward: without them every layer would map fresh memory.
  struct Scratch {
    at::Tensor normed, qkv, attention, gate_up, activated;
  };

  std::vector<SegmentIndex> upload(const ForwardPlan& plan) const;
  at::Tensor enter_segment(const at::Tensor& x, const ForwardPlan& plan, size_t segment,
                           const Forward& forward, const BoundaryStates& states) const;
  void capture(const at::Tensor& x, int layer, const LayerSegment& segment, const Forward& forward,
               const BoundaryStates& states) const;
  at::Tensor scratch(at::Tensor& buffer, int64_t rows, int64_t columns) const;
  /// K, V and attention of a layer; `only_wanted`: the rows whose logits nobody wants end there.
  void attend_layer(int layer, at::Tensor& x, const SegmentIndex& index, bool only_wanted);
  void mlp_layer(int layer, at::Tensor& x);
  void observe(const char* name, int layer, const at::Tensor& value) const;

  const ModelConfig& config_;
  const ModelWeights& weights_;
  KvPool& pool_;
  AttentionKernel kernel_;
  HeadShape heads_;
  RopeTable rope_;
  Scratch scratch_;
  TensorObserver observer_;
};

}  // namespace bicached
