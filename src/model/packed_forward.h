#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/attention.h"
#include "model/cuda/forward_graphs.h"
#include "model/cuda/model_kernels.h"
#include "model/forward_index.h"
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
/// only during the call. While one is set, all rows run through the last layer, and no others.
using TensorObserver = std::function<void(const std::string& name, const at::Tensor& value)>;

/// The transformer over packed rows of many canvases: the one forward of the engine (DESIGN 2).
///
/// In three steps: *plan* lays the rows out (numbers only), *upload* puts those numbers on the
/// device (one copy), *run* is only device work. On a CUDA card a forward of one segment and short
/// sequences, as the steps inside a block are, is padded to one of few sizes and runs as a CUDA
/// graph. On a processor the rows of each segment are filled up to few different numbers.
///
/// Engine thread only, in inference mode. Keeps scratch memory of the largest forward so far,
/// until `drop_scratch`.
class PackedForward {
 public:
  /// Of its buffers and of what comes and goes in a layer.
  static int64_t bytes_per_row(const ModelConfig& config, at::ScalarType dtype, bool fp8);

  /// `config` and `weights` must outlive it.
  PackedForward(const ModelConfig& config, const ModelWeights& weights, KvPool& pool,
                bool cuda_graphs);

  /// Runs all layers; K and V of every row go to its slab. Returns the hidden states of
  /// forward.logit_rows, in their order, after the final norm: [rows, d]. Throws kInternal for a
  /// forward that breaks the rules of `RowGroup`, before anything runs.
  at::Tensor run(const Forward& forward, const BoundaryStates& states);

  /// Gives the scratch memory back; the next forward makes it anew.
  void drop_scratch() { scratch_ = {}; }

  /// Rows through the head, in the compute dtype: [rows, V].
  at::Tensor logits(const at::Tensor& hidden) const;

  void set_observer(TensorObserver observer) { observer_ = std::move(observer); }
  /// Of this model on this card; null where there are none.
  const ModelKernels* kernels() const { return kernels_.get(); }
  /// Graphs captured so far.
  int num_graphs() const { return graphs_ ? graphs_->num_captured() : 0; }
  /// The stream that all work on the card has to be on; null: libtorch's own.
  const CudaStream* stream() const { return stream_.get(); }

 private:
  /// Grow-only buffers of one forward: without them every layer would map fresh memory, and graphs
  /// would have no fixed addresses.
  struct Scratch {
    int64_t num_rows = 0;
    at::Tensor x, normed, qkv, attention, gate_up, activated;
    at::Tensor quantised, scales, added;  // with float8 weights only
  };
  /// What goes into a matrix product: in the compute dtype, or float8 e4m3 with a scale a row.
  struct Activation {
    at::Tensor values;
    at::Tensor scales;
  };

  bool is_quantised() const { return weights_.layers.front().qkv.is_quantised(); }
  void reserve(int64_t num_rows);
  bool is_capturable(const Forward& forward, const ForwardPlan& plan) const;
  at::Tensor enter_segment(const at::Tensor& x, const ForwardPlan& plan, size_t segment,
                           const Forward& forward, const BoundaryStates& states) const;
  void capture(const at::Tensor& x, int layer, const LayerSegment& segment, const Forward& forward,
               const BoundaryStates& states) const;
  at::Tensor embed(const at::Tensor& tokens);
  Activation room(const at::Tensor& buffer, int64_t rows, const Linear& next) const;
  Activation norm(at::Tensor& x, const at::Tensor& weight, const Linear& next);
  void multiply(const Linear& linear, const Activation& input, at::Tensor& out) const;
  void add_product(const Linear& linear, const Activation& input, at::Tensor& x);
  void settle(at::Tensor& x);
  at::Tensor finish(const at::Tensor& x, const at::Tensor& rows) const;
  at::Tensor run_padded(const ForwardIndex& index, const PaddedSize& size);
  at::Tensor run_segments(const ForwardPlan& plan, const ForwardIndex& index, bool only_wanted,
                          const Forward& forward, const BoundaryStates& states);
  /// K, V and attention of a layer; `only_wanted`: the rows whose logits nobody wants end there.
  void attend_layer(int layer, at::Tensor& x, const SegmentIndex& segment,
                    const ForwardIndex& index, bool only_wanted);
  /// slots: of the rows of x, for experts; undefined where no row is padding.
  void mlp_layer(int layer, at::Tensor& x, const at::Tensor& slots);
  void add_mlp(const Mlp& mlp, const Activation& input, at::Tensor& x);
  void add_experts(const Experts& experts, const at::Tensor& input, const at::Tensor& slots,
                   at::Tensor& x);
  void observe(const char* name, int layer, const at::Tensor& value) const;

  const ModelConfig& config_;
  const ModelWeights& weights_;
  KvPool& pool_;
  AttentionKernel kernel_;
  HeadShape heads_;
  RopeTable rope_;
  std::unique_ptr<ModelKernels> kernels_;
  std::unique_ptr<CudaStream> stream_;
  std::unique_ptr<ForwardGraphs> graphs_;  // null: forwards run step by step
  IndexUploader uploader_;
  int index_version_ = 0;
  Scratch scratch_;
  at::Tensor pending_;  // [rows, d] that x still lacks: the next norm adds it
  TensorObserver observer_;
};

}  // namespace bicached
