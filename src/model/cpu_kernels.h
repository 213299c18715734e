#pragma once

#include <cstdint>
#include <span>

namespace bicached {

// Element-wise parts of a layer in float32 on the CPU, in one pass each over the rows; ATen needs
// three to seven operations for the same. All rows-major and contiguous unless a stride says
// otherwise.

/// out[i] = x[i] / sqrt(mean(x[i]^2) + eps) * weight, for N rows of d.
void rms_norm_rows(const float* x, const float* weight, float* out, int64_t num_rows, int64_t d,
                   float eps);

/// Rotates q in place and writes rotated k and v to the pool.
struct RotateAndStore {
  float* qkv = nullptr;        // [N, (H + 2 G) D]
  float* keys = nullptr;       // pool [tokens, G, D]
  float* values = nullptr;     // pool [tokens, G, D]
  const float* cos = nullptr;  // [max length, D / 2]
  const float* sin = nullptr;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_size = 0;
};
/// positions[i] is row i's position on its canvas, slots[i] its place in the pool.
void rotate_and_store(const RotateAndStore& layer, std::span<const int64_t> positions,
                      std::span<const int64_t> slots);

}  // namespace bicached
