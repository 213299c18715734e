#include "model/cpu_kernels.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <cstring>

// The build is for any x86-64; where GCC can, these loops are also compiled for AVX2 and chosen at
// run time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define BICACHED_FAST_LOOP __attribute__((target_clones("arch=haswell", "default"), optimize("O3")))
#else
#define BICACHED_FAST_LOOP
#endif

namespace bicached {
namespace {

// Rows a task takes at least: below this a second thread costs more than it saves.
constexpr int64_t kGrain = 32;

BICACHED_FAST_LOOP void rms_norm_row(const float* x, const float* weight, float* out, int64_t d,
                                     float eps) {
  constexpr int kLanes = 16;  // independent sums, so that the loop can be vectorized
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += x[i + lane] * x[i + lane];
  }
  float sum = 0;
  for (; i < d; ++i) sum += x[i] * x[i];
  for (const float lane : sums) sum += lane;
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(d) + eps);
  for (i = 0; i < d; ++i) out[i] = x[i] * scale * weight[i];
}

BICACHED_FAST_LOOP void rotate_head(const float* in, float* out, const float* cos, const float* sin,
                                    int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = in[i], b = in[half + i];
    out[i] = a * cos[i] - b * sin[i];
    out[half + i] = b * cos[i] + a * sin[i];
  }
}

}  // namespace

void rms_norm_rows(const float* x, const float* weight, float* out, int64_t num_rows, int64_t d,
                   float eps) {
  at::parallel_for(0, num_rows, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      rms_norm_row(x + row * d, weight, out + row * d, d, eps);
    }
  });
}

void rotate_and_store(const RotateAndStore& layer, std::span<const int64_t> positions,
                      std::span<const int64_t> slots) {
  const int64_t size = layer.head_size, half = size / 2;
  const int64_t q_size = layer.num_heads * size, kv_size = layer.num_kv_heads * size;
  at::parallel_for(
      0, static_cast<int64_t>(positions.size()), kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t position = positions[static_cast<size_t>(row)];
          const int64_t slot = slots[static_cast<size_t>(row)];
          const float* cos = layer.cos + position * half;
          const float* sin = layer.sin + position * half;
          float* q = layer.qkv + row * (q_size + 2 * kv_size);
          const float* k = q + q_size;
          for (int64_t h = 0; h < layer.num_heads; ++h) {
            rotate_head(q + h * size, q + h * size, cos, sin, half);
          }
          for (int64_t h = 0; h < layer.num_kv_heads; ++h) {
            rotate_head(k + h * size, layer.keys + slot * kv_size + h * size, cos, sin, half);
          }
          std::memcpy(layer.values + slot * kv_size, k + kv_size,
                      static_cast<size_t>(kv_size) * sizeof(float));
        }
      });
}

}  // namespace bicached
