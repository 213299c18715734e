#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "model/cuda/cuda_runtime.h"
#include "model/forward_plan.h"
#include "model/model_config.h"
#include "model/row_ops.h"
#include "model/weights.h"

namespace bicached {

/// What a row asks of `ModelKernels::draw`; as in logits.cu.
struct DrawnRow {
  int32_t row = 0;  // of the logits
  int32_t top_k = 0;
  int32_t draws = 1;  // 0: the most probable token stays
  float inverse_temperature = 1;
  float top_p = 1;
  float log_min_p = 0;  // -infinity: off
  float uniform = 0;
  int32_t filters_confidence = 0;  // see ReferenceDecoder
};

/// The steps of a forward between its matrix products as kernels of our own (the *.cu files), for
/// bfloat16 on a CUDA card: one for what takes ATen up to ten. Nothing here allocates or waits, and
/// all sizes but the number of rows are fixed, so that a stream that captures can run it. The same
/// steps in ATen, which tests compare with, are in row_ops.h, attention.h, experts.h
/// and denoise/sampler.h.
/// Engine thread only.
class ModelKernels {
 public:
  /// Null where these steps are left to ATen: for another device, dtype or shape, on a card before
  /// compute capability 8.0, or without the compiler (the log says so). `fp8`: weights of experts
  /// are float8 e4m3.
  static std::unique_ptr<ModelKernels> make(const ModelConfig& model, const at::Tensor& embedding,
                                            bool fp8);
  ~ModelKernels();
  ModelKernels(const ModelKernels&) = delete;
  ModelKernels& operator=(const ModelKernels&) = delete;

  void use_stream(void* stream) { stream_ = stream; }

  /// out [N, d] = rows `tokens` [N] of table [V, d].
  void embed(const at::Tensor& table, const at::Tensor& tokens, at::Tensor& out) const;
  /// out [N, d] = x / rms(x) * weight, of the rows `rows` [N] of x; undefined: of all.
  void rms_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& rows,
                at::Tensor& out) const;
  /// The same of all rows after x += add, in place, if that is defined; with scales [N, 1]
  /// (float32) out is float8 e4m3.
  void add_and_norm(at::Tensor& x, const at::Tensor& add, const at::Tensor& weight, at::Tensor& out,
                    at::Tensor& scales) const;
  /// out [N, w] in float8 e4m3, of which out * scales [N, 1] is x; w a multiple of 8.
  void quantise(const at::Tensor& x, at::Tensor& out, at::Tensor& scales) const;
  /// x / rms(x) * weight [D] of each query and key head of qkv [N, (H + 2 G) D], in place.
  void norm_heads(at::Tensor& qkv, const at::Tensor& query, const at::Tensor& key) const;
  /// As in row_ops.h, after adding `bias` if it is defined; a slot below 0 is that of a row which
  /// is padding.
  void rotate_and_store(at::Tensor& qkv, const at::Tensor& bias, const RopeTable& rope,
                        const RowIndex& index, const at::Tensor& keys,
                        const at::Tensor& values) const;
  /// With scales [N, 1] out is float8 e4m3, and as wide as the model's MLP.
  void silu_times_up(const at::Tensor& gate_up, at::Tensor& out, const at::Tensor& scales) const;
  /// Whether `attend` is the faster way for these: short sequences, or little work in all.
  bool suits(const std::vector<AttentionSequence>& sequences) const;
  /// Attention of few queries over many keys. queries [N, H, D]; tiles int32 [n, 4] as
  /// `attention_tiles` makes them.
  void attend(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
              const at::Tensor& tiles, at::Tensor& out) const;
  /// `add_experts` takes up to so many rows: while few of them want an expert, it is the faster
  /// way. A power of two; 0 where it can't be used.
  int64_t max_expert_rows() const { return max_expert_rows_; }
  /// As in experts.h, with weights in bfloat16, or in float8 by `make`. slots: as in RowIndex,
  /// where a row that is padding has none; undefined: no row is padding.
  void add_experts(const at::Tensor& x, const Experts& experts, const at::Tensor& slots,
                   at::Tensor& out) const;
  /// Of each row of logits [W, V], float32 [W, 8]: most probable token (its bits), probability,
  /// confidence, margin, entropy, and three that `draw` reads.
  void row_statistics(const at::Tensor& logits, at::Tensor& out) const;
  /// Draws tokens for some rows, as `sample_rows` does, and changes their statistics [W, 8].
  void draw(const at::Tensor& logits, const std::vector<DrawnRow>& rows,
            at::Tensor& statistics) const;

 private:
  ModelKernels(const ModelConfig& model, const at::Tensor& embedding, bool fp8);
  template <class... Arguments>
  void launch(void* kernel, CudaGrid grid, int block, Arguments... arguments) const;

  /// What `add_experts` knows of its rows. Letters: as in experts.cu.
  struct ExpertBuffers {
    at::Tensor logits, experts, weights;  // [N, E] float32, [N, K] int32, [N, K] float32
    at::Tensor sorted, tiles;             // [P], [tiles, 4] int32
    at::Tensor activated, results;        // [P, w], [P, d]
  };
  void make_expert_buffers(const at::TensorOptions& options);
  int64_t num_tiles(int64_t pairs) const;

  const ModelConfig& model_;
  void* module_;
  void* embed_;
  void* rms_norm_;
  void* norm_heads_;
  void* rotate_and_store_;
  void* quantise_;
  void* silu_times_up_;
  void* quantised_silu_times_up_;
  void* attend_;
  void* row_statistics_;
  void* draw_;
  void* router_logits_ = nullptr;  // these of a model with experts only
  void* choose_experts_ = nullptr;
  void* sort_pairs_ = nullptr;
  void* multiply_by_expert_ = nullptr;
  void* add_weighted_ = nullptr;
  void* stream_ = nullptr;
  int64_t max_blocks_ = 0;  // of `attend` that split keys
  at::Tensor partial_;      // what its blocks leave for the one that ends last
  at::Tensor arrived_;
  int64_t max_expert_rows_ = 0;
  ExpertBuffers buffers_;
};

/// Sequences in pieces of up to 32 rows: {first row, rows, first key, keys} each.
std::vector<int32_t> attention_tiles(const std::vector<AttentionSequence>& sequences);

}  // namespace bicached
