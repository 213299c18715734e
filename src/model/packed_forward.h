#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "bicached/denoiser.h"
#include "model/kv_pool.h"
#include "model/weights.h"

namespace bicached {

/// Where hidden states of a cached prefix come from and go to.
class BoundaryStates {
 public:
  virtual ~BoundaryStates() = default;
  /// State before layer `layer` of the prefix's positions: [P, d], compute dtype.
  virtual at::Tensor load(EntryId entry, int layer) const = 0;
  /// Takes the state before `layer` of the leading rows of a group; keeps it if it has that
  /// boundary.
  virtual void capture(EntryId entry, int layer, const at::Tensor& rows) = 0;
};

/// Sees inner tensors while a forward runs; for comparison with reference implementations.
/// `name` as in the golden files: "embedding", "layers.0.q_pre_rope", ...; rows in packed order.
using TensorObserver = std::function<void(const std::string& name, const at::Tensor& value)>;

/// The model's one forward: rows of many canvases, packed into [N, d], each entering at its layer.
///
/// Worked example, two canvases: A (T = 5, no cache), B (T = 6, prefix of 4 cached at depth 2):
///
///     groups          A [0, 5) enter 0     B [4, 6) enter 0     B [0, 4) enter 2
///     layers 0, 1     rows 0..4            rows 5..6                              N = 7
///     layers 2..      rows 0..4            rows 5..6            rows 7..10        N = 11
///
/// Every linear layer is one GEMM over the N rows; every group is one attention sequence over its
/// own canvas's keys. In the last layer only the rows whose logits are wanted go on after their K
/// and V are stored. Engine thread only.
class PackedForward {
 public:
  PackedForward(const ModelConfig& config, const ModelWeights& weights, KvPool& pool);

  /// Hidden states of the logit rows after the last layer and the final norm: [rows, d].
  at::Tensor run(const Forward& forward, BoundaryStates& states);
  /// Rows through the head: float32 [rows, V].
  at::Tensor logits(const at::Tensor& hidden) const;

  /// With an observer all rows run through the last layer.
  void set_observer(TensorObserver observer) { observer_ = std::move(observer); }

 private:
  struct Layout;  // who is where in [N, d] during a run of layers with the same rows

  Layout make_layout(const Forward& forward, std::vector<int> groups) const;
  at::Tensor embed(const Forward& forward, const Layout& layout) const;
  at::Tensor change_rows(const Forward& forward, const Layout& from, const Layout& to,
                         const at::Tensor& x, int layer, const BoundaryStates& states) const;
  void capture(const Forward& forward, const Layout& layout, const at::Tensor& x, int layer,
               BoundaryStates& states) const;
  at::Tensor run_layer(const at::Tensor& x, int layer, const Layout& layout) const;
  at::Tensor run_last_layer(const at::Tensor& x, const Layout& layout, const at::Tensor& wanted,
                            const Layout& wanted_layout) const;
  void rotate_and_store_rows(at::Tensor& qkv, int layer, const Layout& layout) const;
  at::Tensor attend(const at::Tensor& q, int layer, const Layout& layout) const;
  at::Tensor attend_each(const at::Tensor& q, int layer, const Layout& layout) const;
  at::Tensor attend_packed(const at::Tensor& q, int layer, const Layout& layout) const;
  at::Tensor norm(const at::Tensor& x, const at::Tensor& weight) const;
  at::Tensor finish_layer(const at::Tensor& x, const at::Tensor& attended, int layer) const;
  at::Tensor to_device(const std::vector<int64_t>& values) const;
  void observe(const std::string& name, const at::Tensor& value) const;

  const ModelConfig& config_;
  const ModelWeights& weights_;
  KvPool& pool_;
  at::Device device_;
  at::ScalarType dtype_;
  at::Tensor cos_;  // [max length, D / 2], float32
  at::Tensor sin_;
  TensorObserver observer_;
};

}  // namespace bicached
