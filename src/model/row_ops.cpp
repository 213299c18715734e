#include "model/row_ops.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace bicached {
namespace {

// Wide registers where the machine has them; the plain version runs anywhere.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define BICACHED_WIDE \
  __attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3", "no-math-errno")))
#else
#define BICACHED_WIDE
#endif

/// Work below this many elements is not worth waking a thread for.
constexpr int64_t kElementsPerTask = 16384;

int64_t rows_per_task(int64_t row_elements) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, row_elements));
}

BICACHED_WIDE void norm_row(const float* x, const float* weight, float eps, int64_t d, float* out) {
  constexpr int64_t kLanes = 16;  // independent sums, so that they fit a wide register
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) sums[j] += x[i + j] * x[i + j];
  }
  float sum = 0.0f;
  for (; i < d; ++i) sum += x[i] * x[i];
  for (const float lane : sums) sum += lane;
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(d) + eps);
  for (i = 0; i < d; ++i) out[i] = x[i] * scale * weight[i];
}

/// e^x to 1e-7 of it, between e^-87 and e^88 for what is beyond. By range reduction to powers of
/// two and Taylor's polynomial of degree 7 over [-ln 2 / 2, ln 2 / 2].
__attribute__((always_inline)) inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;  // not-a-number stays one
  x = x > 88.0f ? 88.0f : x;
  constexpr float kShift = 0x1.8p23f;  // a sum with it is a whole number
  const float shifted = x * 1.44269504f + kShift;
  const float whole = shifted - kShift;
  const float rest = x - whole * 0.693145752f - whole * 1.42860677e-6f;
  float value = 1.0f / 5040 * rest + 1.0f / 720;
  value = value * rest + 1.0f / 120;
  value = value * rest + 1.0f / 24;
  value = value * rest + 1.0f / 6;
  value = value * rest + 0.5f;
  value = value * rest + 1.0f;
  value = value * rest + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;  // the whole number stands in the lowest bits
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return value * power;
}

/// x = softmax(scale x), scale > 0.
BICACHED_WIDE void softmax_row(float* x, int64_t n, float scale) {
  constexpr int64_t kLanes = 16;
  float most[kLanes], sums[kLanes] = {};
  for (float& lane : most) lane = -std::numeric_limits<float>::max();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) most[j] = most[j] < x[i + j] ? x[i + j] : most[j];
  }
  for (; i < n; ++i) most[0] = most[0] < x[i] ? x[i] : most[0];
  for (const float lane : most) most[0] = most[0] < lane ? lane : most[0];
  const float greatest = most[0];
  for (i = 0; i < n; ++i) x[i] = exponential((x[i] - greatest) * scale);
  for (i = 0; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) sums[j] += x[i + j];
  }
  for (; i < n; ++i) sums[0] += x[i];
  float sum = 0.0f;
  for (const float lane : sums) sum += lane;
  const float share = 1.0f / sum;
  for (i = 0; i < n; ++i) x[i] *= share;
}

BICACHED_WIDE void silu_times_up_row(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

BICACHED_WIDE void rotate_head(float* head, const float* cosine, const float* sine, int64_t half) {
  float* second = head + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = second[i];
    head[i] = a * cosine[i] - b * sine[i];
    second[i] = b * cosine[i] + a * sine[i];
  }
}

BICACHED_WIDE void widen(const c10::BFloat16* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i].x) << 16;
    std::memcpy(to + i, &bits, sizeof bits);
  }
}

/// Rounds to nearest even. Not-a-number stays one: its upper half is never zero here.
BICACHED_WIDE void narrow(const float* from, int64_t n, c10::BFloat16* to) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to[i].x = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
}

/// Calls `work(row, result)` for each row of `in` and `out`, two contiguous tensors or the same one
/// twice; then `row` is `result`. In float32, rounded once. In bfloat16 different rows lie apart:
/// loops over them are compiled for wide registers only if they don't overlap.
template <class Work>
void for_each_row(const at::Tensor& in, at::Tensor& out, Work&& work) {
  const int64_t width = in.size(-1), out_width = out.size(-1);
  const int64_t count = in.numel() / std::max<int64_t>(1, width);
  at::parallel_for(0, count, rows_per_task(width), [&](int64_t begin, int64_t end) {
    if (in.scalar_type() == at::kFloat) {
      for (int64_t i = begin; i < end; ++i) {
        work(in.const_data_ptr<float>() + i * width, out.mutable_data_ptr<float>() + i * out_width);
      }
      return;
    }
    std::vector<float> wide(static_cast<size_t>(width + out_width));
    float* result = wide.data() + (in.is_same(out) ? 0 : width);
    for (int64_t i = begin; i < end; ++i) {
      widen(in.const_data_ptr<c10::BFloat16>() + i * width, width, wide.data());
      work(wide.data(), result);
      narrow(result, out_width, out.mutable_data_ptr<c10::BFloat16>() + i * out_width);
    }
  });
}

/// Rotates `count` heads in place.
void rotate_heads(float* heads, int64_t count, int64_t head_size, const float* cosine,
                  const float* sine, int64_t half) {
  for (int64_t h = 0; h < count; ++h) rotate_head(heads + h * head_size, cosine, sine, half);
}

template <class T>
void rotate_and_store_cpu(at::Tensor& qkv, const HeadShape& heads, const RopeTable& rope,
                          const RowIndex& index, const std::pair<at::Tensor, at::Tensor>& pool) {
  const int64_t n = qkv.size(0), width = heads.qkv_size(), half = rope.cosine.size(1);
  const int64_t rotated = (heads.num_heads + heads.num_kv_heads) * heads.head_size;
  const int64_t query = heads.num_heads * heads.head_size;
  const int64_t stored = heads.num_kv_heads * heads.head_size;
  T* rows = qkv.mutable_data_ptr<T>();
  T* keys = pool.first.mutable_data_ptr<T>();
  T* values = pool.second.mutable_data_ptr<T>();
  const float* cosine = rope.cosine.const_data_ptr<float>();
  const float* sine = rope.sine.const_data_ptr<float>();
  const int64_t* positions = index.positions.const_data_ptr<int64_t>();
  const int64_t* slots = index.slots.const_data_ptr<int64_t>();
  at::parallel_for(0, n, rows_per_task(width), [&](int64_t begin, int64_t end) {
    std::vector<float> wide(std::is_same_v<T, float> ? 0 : static_cast<size_t>(rotated));
    for (int64_t i = begin; i < end; ++i) {
      T* row = rows + i * width;
      const float* c = cosine + positions[i] * half;
      const float* s = sine + positions[i] * half;
      if constexpr (std::is_same_v<T, float>) {
        rotate_heads(row, heads.num_heads + heads.num_kv_heads, heads.head_size, c, s, half);
      } else {
        widen(row, rotated, wide.data());
        rotate_heads(wide.data(), heads.num_heads + heads.num_kv_heads, heads.head_size, c, s,
                     half);
        narrow(wide.data(), rotated, row);
      }
      if (slots[i] < 0) continue;
      const auto bytes = static_cast<size_t>(stored) * sizeof(T);
      std::memcpy(static_cast<void*>(keys + slots[i] * stored), row + query, bytes);
      std::memcpy(static_cast<void*>(values + slots[i] * stored), row + rotated, bytes);
    }
  });
}

void rotate_and_store_device(at::Tensor& qkv, const HeadShape& heads, const RopeTable& rope,
                             const RowIndex& index, const std::pair<at::Tensor, at::Tensor>& pool) {
  const int64_t n = qkv.size(0), half = rope.cosine.size(1);
  const int64_t rotated = heads.num_heads + heads.num_kv_heads;
  at::Tensor rows = qkv.view({n, rotated + heads.num_kv_heads, heads.head_size});
  const at::Tensor cosine = rope.cosine.index_select(0, index.positions).unsqueeze(1);
  const at::Tensor sine = rope.sine.index_select(0, index.positions).unsqueeze(1);
  at::Tensor turning = rows.narrow(1, 0, rotated);
  // A copy also in float32: the halves below are read after `turning` is written.
  const at::Tensor wide = turning.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  const at::Tensor first = wide.narrow(2, 0, half), second = wide.narrow(2, half, half);
  turning.narrow(2, 0, half).copy_(first.mul(cosine).addcmul_(second, sine, -1));
  turning.narrow(2, half, half).copy_(second.mul(cosine).addcmul_(first, sine));
  at::Tensor keys = pool.first, values = pool.second;
  keys.index_copy_(0, index.slots, rows.narrow(1, heads.num_heads, heads.num_kv_heads));
  values.index_copy_(0, index.slots, rows.narrow(1, rotated, heads.num_kv_heads));
}

}  // namespace

RopeTable make_rope_table(int64_t num_positions, int64_t rotary_size, double theta,
                          const at::Device& device) {
  const int64_t half = rotary_size / 2;
  const at::Tensor cosine = at::empty({num_positions, half}, at::dtype(at::kFloat));
  const at::Tensor sine = at::empty({num_positions, half}, at::dtype(at::kFloat));
  float* c = cosine.mutable_data_ptr<float>();
  float* s = sine.mutable_data_ptr<float>();
  for (int64_t i = 0; i < half; ++i) {
    // All in float32, as the models were trained: an exact angle would be another model.
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_size);
    const float frequency = 1.0f / std::pow(static_cast<float>(theta), exponent);
    for (int64_t t = 0; t < num_positions; ++t) {
      const float angle = static_cast<float>(t) * frequency;
      c[t * half + i] = std::cos(angle);
      s[t * half + i] = std::sin(angle);
    }
  }
  return {cosine.to(device), sine.to(device)};
}

void rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& out) {
  if (!x.is_cpu()) {
    out.copy_(at::rms_norm(x, {x.size(1)}, weight, eps));
    return;
  }
  const at::Tensor wide = weight.to(at::kFloat);
  const float* scale = wide.const_data_ptr<float>();
  for_each_row(x, out, [&, d = x.size(1)](const float* row, float* result) {
    norm_row(row, scale, static_cast<float>(eps), d, result);
  });
}

void norm_heads(const at::Tensor& heads, const at::Tensor& weight, double eps) {
  const at::Tensor wide = heads.to(at::kFloat);
  const at::Tensor scale = wide.square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
  heads.copy_(wide.mul(scale).mul_(weight.to(at::kFloat)));
}

void rotate_and_store(at::Tensor& qkv, const HeadShape& heads, const RopeTable& rope,
                      const RowIndex& index, std::pair<at::Tensor, at::Tensor> pool) {
  if (!qkv.is_cpu()) return rotate_and_store_device(qkv, heads, rope, index, pool);
  if (qkv.scalar_type() == at::kFloat) {
    rotate_and_store_cpu<float>(qkv, heads, rope, index, pool);
  } else {
    rotate_and_store_cpu<c10::BFloat16>(qkv, heads, rope, index, pool);
  }
}

void softmax_rows(at::Tensor& scores, int64_t num_keys, double scale) {
  const int64_t rest = scores.size(-1) - num_keys;
  if (!scores.is_cpu()) {
    at::Tensor real = scores.narrow(-1, 0, num_keys);
    real.copy_(at::softmax(real.mul_(scale), -1, at::kFloat));
    scores.narrow(-1, num_keys, rest).zero_();
    return;
  }
  for_each_row(scores, scores, [&](const float*, float* row) {
    softmax_row(row, num_keys, static_cast<float>(scale));
    std::fill_n(row + num_keys, rest, 0.0f);
  });
}

void silu_times_up(const at::Tensor& gate_up, at::Tensor& out) {
  const int64_t m = out.size(1);
  if (!out.is_cpu()) {
    at::silu_out(out, gate_up.narrow(1, 0, m));
    out.mul_(gate_up.narrow(1, m, m));
    return;
  }
  for_each_row(gate_up, out, [m](const float* row, float* result) {
    silu_times_up_row(row, row + m, m, result);
  });
}

}  // namespace bicached
