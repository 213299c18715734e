// --- Rows ----------------------------------------------------------------------------------------

/// out [N, d] = rows `tokens` of table [V, d]. Grid N.
extern "C" __global__ void embed(const bf16* table, const i64* tokens, bf16* out) {
  const uint4* from = (const uint4*)(table + tokens[blockIdx.x] * HIDDEN);
  uint4* to = (uint4*)(out + (i64)blockIdx.x * HIDDEN);
  for (int i = threadIdx.x; i < HIDDEN / 8; i += blockDim.x) to[i] = from[i];
}

__device__ __forceinline__ uint4 added(uint4 v, uint4 a) {
  const auto sum = [](u32 two, u32 other) {
    return pack(low(two) + low(other), high(two) + high(other));
  };
  return make_uint4(sum(v.x, a.x), sum(v.y, a.y), sum(v.z, a.z), sum(v.w, a.w));
}

/// Over a block of so many warps: the sum, or the greatest.
template <bool kGreatest, int kWarps = 8>
__device__ __forceinline__ float over_block(float x) {
  __shared__ float warps[kWarps];
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(~0u, x, step);
    x = kGreatest ? fmaxf(x, other) : x + other;
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = warps[0];
  for (int i = 1; i < kWarps; ++i) x = kGreatest ? fmaxf(x, warps[i]) : x + warps[i];
  __syncthreads();
  return x;
}

/// Eight values, as they lie in memory.
struct Eight {
  float x[8];
  __device__ static Eight of(uint4 v) {
    return {{low(v.x), high(v.x), low(v.y), high(v.y), low(v.z), high(v.z), low(v.w), high(v.w)}};
  }
  __device__ uint4 packed() const {
    return make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
  }
  __device__ float greatest() const {
    float most = 0;
    for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(x[i]));
    return most;
  }
  /// In float8 e4m3, after division by a row's scale.
  __device__ uint2 quantised(float inverse) const {
#if __CUDA_ARCH__ >= 890
    unsigned short two[4];
    for (int i = 0; i < 4; ++i) {
      asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
          : "=h"(two[i])
          : "f"(x[2 * i + 1] * inverse), "f"(x[2 * i] * inverse));
    }
    return make_uint2(two[0] | (u32)two[1] << 16, two[2] | (u32)two[3] << 16);
#else
    return make_uint2(0, 0);
#endif
  }
};

/// A row's scale: its greatest value becomes the greatest of e4m3. A row of zeros has one, too.
__device__ __forceinline__ float scale_of(float greatest) { return fmaxf(greatest, 1e-6f) / 448; }

/// out [N, d] = x / rms(x) * weight [d], of rows `rows` of x, or all of them where it is null. Where
/// `add` is not null, x += add first, in place. Where `scales` [N] is not null, out is float8 e4m3
/// and out * scales is the result. Grid N, block 256.
extern "C" __global__ void __launch_bounds__(256)
    rms_norm(bf16* x, const bf16* add, const bf16* weight, const i64* rows, void* out,
             float* scales) {
  constexpr int kEach = HIDDEN / 8 / 256 + 1;  // a thread's share stays in registers
  const i64 row = rows ? rows[blockIdx.x] : (i64)blockIdx.x;
  uint4* from = (uint4*)(x + row * HIDDEN);
  uint4 w[kEach];
  Eight e[kEach];
  float squares = 0;
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    const int i = threadIdx.x + 256 * n;
    if (i >= HIDDEN / 8) continue;
    w[n] = ((const uint4*)weight)[i];
    uint4 v = from[i];
    if (add) {
      v = added(v, ((const uint4*)(add + row * HIDDEN))[i]);
      from[i] = v;
    }
    e[n] = Eight::of(v);
    for (int j = 0; j < 8; ++j) squares += e[n].x[j] * e[n].x[j];
  }
  const float scale = rsqrtf(over_block<false>(squares) / HIDDEN + EPS);
  float most = 0;
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    const int i = threadIdx.x + 256 * n;
    if (i >= HIDDEN / 8) continue;
    const Eight by = Eight::of(w[n]);
    for (int j = 0; j < 8; ++j) e[n].x[j] = e[n].x[j] * scale * by.x[j];
    if (!scales) ((uint4*)out + (i64)blockIdx.x * (HIDDEN / 8))[i] = e[n].packed();
    most = fmaxf(most, e[n].greatest());
  }
  if (!scales) return;
  const float step = scale_of(over_block<true>(most));
  uint2* to = (uint2*)out + (i64)blockIdx.x * (HIDDEN / 8);
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    const int i = threadIdx.x + 256 * n;
    if (i < HIDDEN / 8) to[i] = e[n].quantised(1 / step);
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = step;
}

/// out [N, width] in float8 e4m3 with a scale a row, of x [N, width]. Grid N, block 256.
extern "C" __global__ void __launch_bounds__(256)
    quantise(const bf16* x, int width, uint2* out, float* scales) {
  const uint4* from = (const uint4*)(x + (i64)blockIdx.x * width);
  float most = 0;
  for (int i = threadIdx.x; i < width / 8; i += 256) most = fmaxf(most, Eight::of(from[i]).greatest());
  const float step = scale_of(over_block<true>(most));
  uint2* to = out + (i64)blockIdx.x * (width / 8);
  for (int i = threadIdx.x; i < width / 8; i += 256) to[i] = Eight::of(from[i]).quantised(1 / step);
  if (threadIdx.x == 0) scales[blockIdx.x] = step;
}

/// x / rms(x) * weight [D] of each query and key head of qkv [N, (H + 2 G) D], in place. A warp a head:
/// grid N (H + G) / 8, block 256.
extern "C" __global__ void norm_heads(bf16* qkv, const bf16* query, const bf16* key, i64 rows) {
  constexpr int kPairs = HEAD_SIZE / 2, kEach = (kPairs + 31) / 32, kHeads = HEADS + KV_HEADS;
  const i64 at = (i64)blockIdx.x * 8 + threadIdx.x / 32;
  if (at >= rows * kHeads) return;
  const int head = at % kHeads, lane = threadIdx.x % 32;
  u32* x = (u32*)(qkv + at / kHeads * QKV + head * HEAD_SIZE);
  const u32* weight = (const u32*)(head < HEADS ? query : key);
  float squares = 0;
  for (int n = 0; n < kEach; ++n) {
    const int i = lane + 32 * n;
    if (i < kPairs) squares += low(x[i]) * low(x[i]) + high(x[i]) * high(x[i]);
  }
  for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
  const float scale = rsqrtf(squares / HEAD_SIZE + EPS);
  for (int n = 0; n < kEach; ++n) {
    const int i = lane + 32 * n;
    if (i >= kPairs) continue;
    x[i] = pack(low(x[i]) * scale * low(weight[i]), high(x[i]) * scale * high(weight[i]));
  }
}

/// Adds bias [(H + 2 G) D] to qkv [N, (H + 2 G) D] unless it is null, rotates queries and keys in place,
/// halves of the first R numbers of a head against halves, and stores keys and values in the pool
/// [tokens, G, D] at the rows' slots; a negative slot: the row is padding. cosine, sine: float32
/// [positions, R / 2]. Grid (N, any), block 256.
extern "C" __global__ void rotate_and_store(bf16* qkv, const bf16* bias, bf16* keys, bf16* values,
                                            const float* cosine, const float* sine,
                                            const i64* positions, const i64* slots) {
  constexpr int kHead = HEAD_SIZE / 8, kHalf = ROTARY / 16;  // in eights, as all that follows
  constexpr int kRest = kHead - 2 * kHalf, kTurned = HEADS + KV_HEADS;
  constexpr int kTurns = kTurned * kHalf, kRests = kTurned * kRest, kValues = KV_HEADS * kHead;
  const i64 position = positions[blockIdx.x], slot = slots[blockIdx.x];
  if (slot < 0) return;
  uint4* row = (uint4*)(qkv + (i64)blockIdx.x * QKV);
  uint4* key = (uint4*)keys + slot * kValues;
  uint4* value = (uint4*)values + slot * kValues;
  const auto biased = [&](int at) {
    Eight e = Eight::of(row[at]);
    if (!bias) return e;
    const Eight b = Eight::of(((const uint4*)bias)[at]);
    for (int j = 0; j < 8; ++j) e.x[j] += b.x[j];
    return Eight::of(e.packed());
  };
  const int end = kTurns + kRests + kValues;
  for (int i = blockIdx.y * 256 + threadIdx.x; i < end; i += gridDim.y * 256) {
    if (i >= kTurns + kRests) {
      const int at = i - kTurns - kRests;
      value[at] = biased(kTurned * kHead + at).packed();
      continue;
    }
    if (i >= kTurns) {
      constexpr int kDivisor = kRest > 0 ? kRest : 1;
      const int head = (i - kTurns) / kDivisor;
      const int at = head * kHead + 2 * kHalf + (i - kTurns) % kDivisor;
      row[at] = biased(at).packed();
      if (head >= HEADS) key[at - HEADS * kHead] = row[at];
      continue;
    }
    const int head = i / kHalf, at = i % kHalf;
    const int first = head * kHead + at, second = first + kHalf;
    const float* c = cosine + (position * kHalf + at) * 8;
    const float* s = sine + (position * kHalf + at) * 8;
    const Eight a = biased(first), b = biased(second);
    Eight x, y;
    for (int j = 0; j < 8; ++j) {
      x.x[j] = a.x[j] * c[j] - b.x[j] * s[j];
      y.x[j] = b.x[j] * c[j] + a.x[j] * s[j];
    }
    row[first] = x.packed();
    row[second] = y.packed();
    if (head < HEADS) continue;
    key[first - HEADS * kHead] = x.packed();
    key[second - HEADS * kHead] = y.packed();
  }
}

__device__ __forceinline__ float silu(float x) { return x / (1 + exp2_fast(-LOG2E * x)); }

__device__ __forceinline__ Eight gated(uint4 gate, uint4 up) {
  Eight g = Eight::of(gate);
  const Eight u = Eight::of(up);
  for (int i = 0; i < 8; ++i) g.x[i] = silu(g.x[i]) * u.x[i];
  return g;
}

/// out [N, width] = silu(gate) * up, gate_up [N, 2 width]. Grid (N, any), block 256.
extern "C" __global__ void silu_times_up(const bf16* gate_up, int width, uint4* out) {
  const uint4* gate = (const uint4*)(gate_up + (i64)blockIdx.x * 2 * width);
  uint4* to = out + (i64)blockIdx.x * (width / 8);
  for (int i = blockIdx.y * 256 + threadIdx.x; i < width / 8; i += gridDim.y * 256) {
    to[i] = gated(gate[i], gate[width / 8 + i]).packed();
  }
}

/// The same for width m in float8 e4m3 with a scale a row. Grid N, block 512.
extern "C" __global__ void __launch_bounds__(512)
    quantised_silu_times_up(const bf16* gate_up, uint2* out, float* scales) {
  constexpr int kEach = MLP / 8 / 512 + 1;  // a thread's share stays in registers
  const uint4* gate = (const uint4*)(gate_up + (i64)blockIdx.x * 2 * MLP);
  Eight e[kEach];
  float most = 0;
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    const int i = threadIdx.x + 512 * n;
    if (i >= MLP / 8) continue;
    e[n] = gated(gate[i], gate[MLP / 8 + i]);
    most = fmaxf(most, e[n].greatest());
  }
  const float step = scale_of(over_block<true, 16>(most));
  uint2* to = out + (i64)blockIdx.x * (MLP / 8);
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    const int i = threadIdx.x + 512 * n;
    if (i < MLP / 8) to[i] = e[n].quantised(1 / step);
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = step;
}

