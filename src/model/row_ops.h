#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace bicached {

/// Cosine and sine of the rotary angles, float32 [max positions, R / 2], on the device. R: how many
/// leading numbers of a head are rotated.
struct RopeTable {
  at::Tensor cosine;
  at::Tensor sine;
};
RopeTable make_rope_table(int64_t num_positions, int64_t rotary_size, double theta,
                          const at::Device& device);

/// Sizes of the fused query, key, value row: [q heads | kv heads | kv heads] x head size.
struct HeadShape {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_size = 0;
  int64_t qkv_size() const { return (num_heads + 2 * num_kv_heads) * head_size; }
};

/// Which row is where: int64 [N] on the device. Slot -1, where kernels of our own or a processor do
/// the work: nowhere.
struct RowIndex {
  at::Tensor positions;
  at::Tensor slots;
};

// The elementwise steps of a layer. On the CPU they are loops over raw memory, one parallel region
// each (ATen would need two to ten passes); else ATen operations. N rows, dtype of
// the model.

/// out [N, d] = x [N, d] / rms(x) * weight [d]; in float32, rounded once.
void rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& out);

/// RMSNorm of each head in place (Qwen3's q_norm and k_norm), an ATen operation anywhere. heads:
/// [N, H, D], rows may be strided; weight: [D]. In float32, rounded once.
void norm_heads(const at::Tensor& heads, const at::Tensor& weight, double eps);

/// Rotates queries (in place) and keys of qkv [N, (H + 2 Hkv) D], halves of the first R numbers
/// against halves, in float32; stores keys and values in the layer's pool [pool tokens, Hkv, D] at
/// the rows' slots.
void rotate_and_store(at::Tensor& qkv, const HeadShape& heads, const RopeTable& rope,
                      const RowIndex& index, std::pair<at::Tensor, at::Tensor> pool);

/// scores [.., at least T], contiguous = softmax(scale * scores) over the first T of each row, and
/// 0 behind; in float32, rounded once.
void softmax_rows(at::Tensor& scores, int64_t num_keys, double scale);

/// out [N, M] = silu(gate) * up, gate_up [N, 2 M]; both contiguous.
void silu_times_up(const at::Tensor& gate_up, at::Tensor& out);

}  // namespace bicached
