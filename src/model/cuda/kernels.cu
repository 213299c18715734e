// The device code of a forward in bfloat16. Compiled at start for one model, whose sizes are macros:
//   HIDDEN d, MLP m, HEADS H, KV_HEADS G, HEAD_SIZE D, ROTARY R of them rotated, EPS of the norm; LOGITS rows of the head, VOCAB
//   and MASK_TOKEN: only ids below VOCAB that are not MASK_TOKEN are chosen.
// Includes nothing, so that compiling needs no CUDA toolkit. `row_ops.h`, `attention.h` and
// `sampler.h` have the same steps in ATen, which these are tested against.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef long long i64;

#define QKV ((HEADS + 2 * KV_HEADS) * HEAD_SIZE)
#define LOG2E 1.4426950408889634f

__device__ __forceinline__ float low(u32 two) { return __uint_as_float(two << 16); }
__device__ __forceinline__ float high(u32 two) { return __uint_as_float(two & 0xffff0000u); }
/// Rounds two to nearest even.
__device__ __forceinline__ u32 pack(float first, float second) {
  u32 two;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(second), "f"(first));
  return two;
}
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// --- Rows ----------------------------------------------------------------------------------------

/// out [N, d] = rows `tokens` of table [V, d]. Grid N.
extern "C" __global__ void embed(const bf16* table, const i64* tokens, bf16* out) {
  const uint4* from = (const uint4*)(table + tokens[blockIdx.x] * HIDDEN);
  uint4* to = (uint4*)(out + (i64)blockIdx.x * HIDDEN);
  for (int i = threadIdx.x; i < HIDDEN / 8; i += blockDim.x) to[i] = from[i];
}

__device__ __forceinline__ u32 sum(u32 two, u32 other) {
  return pack(low(two) + low(other), high(two) + high(other));
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
      const uint4 a = ((const uint4*)(add + row * HIDDEN))[i];
      v = make_uint4(sum(v.x, a.x), sum(v.y, a.y), sum(v.z, a.z), sum(v.w, a.w));
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

__device__ __forceinline__ Eight gated(uint4 gate, uint4 up) {
  Eight g = Eight::of(gate);
  const Eight u = Eight::of(up);
  for (int i = 0; i < 8; ++i) g.x[i] = g.x[i] / (1 + exp2_fast(-LOG2E * g.x[i])) * u.x[i];
  return g;
}

/// out [N, m] = silu(gate) * up, gate_up [N, 2 m]. Grid (N, any), block 256.
extern "C" __global__ void silu_times_up(const bf16* gate_up, uint4* out) {
  const uint4* gate = (const uint4*)(gate_up + (i64)blockIdx.x * 2 * MLP);
  uint4* to = out + (i64)blockIdx.x * (MLP / 8);
  for (int i = blockIdx.y * 256 + threadIdx.x; i < MLP / 8; i += gridDim.y * 256) {
    to[i] = gated(gate[i], gate[MLP / 8 + i]).packed();
  }
}

/// The same in float8 e4m3 with a scale a row. Grid N, block 512.
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

// --- Attention -----------------------------------------------------------------------------------

#if HEAD_SIZE == 32 || HEAD_SIZE == 64 || HEAD_SIZE == 128

/// c [16, 8] += a [16, 16] b [16, 8].
__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0,
                                         u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

constexpr int kColumns = HEAD_SIZE / 8;     // values of one thread's share of a head
constexpr int kWords = kColumns / 2;        // the same in pairs
constexpr int kGroups = HEAD_SIZE / 32;     // 32 values of a head go into two products
constexpr int kState = 4 * kColumns + 4;    // floats of a thread: sums, and max and total of 2 rows

/// What a thread has of the attention of two query rows: rows g and g + 8 of 16.
struct Partial {
  float sum[kColumns][4];  // value c + column of ...: row g: 0, 1; row g + 8: 2, 3
  float most[2];           // of the scores so far, times log2(e)
  float total[2];          // of their exponentials

  __device__ void clear() {
    for (int j = 0; j < kColumns; ++j) sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0;
    most[0] = most[1] = -1e30f;
    total[0] = total[1] = 0;
  }
  __device__ void rescale(int row, float larger) {
    const float factor = exp2_fast(most[row] - larger);
    most[row] = larger;
    total[row] *= factor;
    for (int j = 0; j < kColumns; ++j) {
      sum[j][2 * row] *= factor;
      sum[j][2 * row + 1] *= factor;
    }
  }
  __device__ void add(const Partial& other) {
    for (int row = 0; row < 2; ++row) {
      const float larger = fmaxf(most[row], other.most[row]);
      const float factor = exp2_fast(other.most[row] - larger);
      rescale(row, larger);
      total[row] += other.total[row] * factor;
      for (int j = 0; j < kColumns; ++j) {
        sum[j][2 * row] += other.sum[j][2 * row] * factor;
        sum[j][2 * row + 1] += other.sum[j][2 * row + 1] * factor;
      }
    }
  }
  /// [kState][64]: neighbouring threads side by side.
  __device__ void save(float* to) const {
    for (int j = 0; j < kColumns; ++j) {
      for (int i = 0; i < 4; ++i) to[(4 * j + i) * 64] = sum[j][i];
    }
    for (int row = 0; row < 2; ++row) {
      to[(4 * kColumns + row) * 64] = most[row];
      to[(4 * kColumns + 2 + row) * 64] = total[row];
    }
  }
  __device__ void load(const float* from) {
    for (int j = 0; j < kColumns; ++j) {
      for (int i = 0; i < 4; ++i) sum[j][i] = from[(4 * j + i) * 64];
    }
    for (int row = 0; row < 2; ++row) {
      most[row] = from[(4 * kColumns + row) * 64];
      total[row] = from[(4 * kColumns + 2 + row) * 64];
    }
  }
};

/// Attention without a mask: queries [N, H D], `stride` values from row to row, over keys and values of
/// the pool [tokens, G, D]; out [N, H D]. A tile is {first row, rows (1 to 32; 0: padding), first
/// key, keys}. Grid (tiles, H, splits), block 128: two warps for the rows, times two for the keys. With
/// splits each part of the keys is a block of its own, and the one that ends last adds them up, in
/// their order. partial: float [tiles, H, splits, kState, 64]; arrived: [tiles, H], zeros before and
/// after.
///
/// Operands go from memory straight into the registers of the products. The order of a head's values
/// does not matter for a score, so a thread reads 16 neighbouring bytes of a key and uses the same
/// order for the query; of the values a thread takes neighbouring columns.
extern "C" __global__ void __launch_bounds__(128)
    attend(const bf16* queries, i64 stride, const bf16* keys, const bf16* values, const int4* tiles,
           bf16* out, float* partial, int* arrived) {
  __shared__ float shared[kState * 64];
  __shared__ int is_last;
  const int4 tile = tiles[blockIdx.x];
  if (tile.y == 0) return;
  const int head = blockIdx.y, splits = gridDim.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int part = warp % 2 * 16, half = warp / 2;
  const int chunk = (tile.w + splits * 32 - 1) / (splits * 32) * 32;
  const int begin = blockIdx.z * chunk, end = min(tile.w, begin + chunk);

  uint4 query[kGroups][2];
  for (int row = 0; row < 2; ++row) {
    const int at = tile.x + min(part + g + 8 * row, tile.y - 1);
    const uint4* from = (const uint4*)(queries + at * stride + head * HEAD_SIZE);
    for (int i = 0; i < kGroups; ++i) query[i][row] = from[4 * i + t];
  }
  const int kv_head = head / (HEADS / KV_HEADS);
  const i64 first = ((i64)tile.z * KV_HEADS + kv_head) * HEAD_SIZE;
  const auto line = [&](const bf16* of, int key) {  // keys that are none read the last one
    return (const uint4*)(of + first + (i64)min(key, end - 1) * KV_HEADS * HEAD_SIZE);
  };

  Partial own;
  own.clear();
  const float scale = LOG2E * rsqrtf((float)HEAD_SIZE);
  for (int base = begin + 16 * half; base < end; base += 32) {
    uint4 key[2][kGroups];
    for (int n = 0; n < 2; ++n) {
      const uint4* from = line(keys, base + 8 * n + g);
      for (int i = 0; i < kGroups; ++i) key[n][i] = from[4 * i + t];
    }
    u32 value[4][kWords];  // of keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9
    for (int k = 0; k < 4; ++k) {
      const uint4* from = line(values, base + 2 * t + k % 2 + 8 * (k / 2));
      if constexpr (kWords == 2) {
        const uint2 two = ((const uint2*)from)[g];
        value[k][0] = two.x, value[k][1] = two.y;
      }
      for (int i = 0; i < kWords / 4; ++i) {
        const uint4 four = from[g * (kWords / 4) + i];
        value[k][4 * i] = four.x, value[k][4 * i + 1] = four.y;
        value[k][4 * i + 2] = four.z, value[k][4 * i + 3] = four.w;
      }
    }
    float score[2][4] = {};
    for (int n = 0; n < 2; ++n) {
      for (int i = 0; i < kGroups; ++i) {
        const uint4 a = query[i][0], b = query[i][1], k = key[n][i];
        multiply(score[n], a.x, b.x, a.y, b.y, k.x, k.y);
        multiply(score[n], a.z, b.z, a.w, b.w, k.z, k.w);
      }
    }
    for (int n = 0; n < 2; ++n) {
      for (int i = 0; i < 4; ++i) {
        const bool is_key = base + 8 * n + 2 * t + i % 2 < end;
        score[n][i] = is_key ? score[n][i] * scale : -1e30f;
      }
    }
    for (int row = 0; row < 2; ++row) {
      float most = fmaxf(fmaxf(score[0][2 * row], score[0][2 * row + 1]),
                         fmaxf(score[1][2 * row], score[1][2 * row + 1]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      own.rescale(row, fmaxf(own.most[row], most));
      for (int n = 0; n < 2; ++n) {
        for (int i = 2 * row; i < 2 * row + 2; ++i) {
          score[n][i] = exp2_fast(score[n][i] - own.most[row]);
          own.total[row] += score[n][i];
        }
      }
    }
    const u32 a0 = pack(score[0][0], score[0][1]), a1 = pack(score[0][2], score[0][3]);
    const u32 a2 = pack(score[1][0], score[1][1]), a3 = pack(score[1][2], score[1][3]);
    for (int j = 0; j < kColumns; ++j) {
      const u32 halves = j % 2 ? 0x7632 : 0x5410;
      const u32 b0 = __byte_perm(value[0][j / 2], value[1][j / 2], halves);
      const u32 b1 = __byte_perm(value[2][j / 2], value[3][j / 2], halves);
      multiply(own.sum[j], a0, a1, a2, a3, b0, b1);
    }
  }
  for (int row = 0; row < 2; ++row) {
    own.total[row] += __shfl_xor_sync(~0u, own.total[row], 1);
    own.total[row] += __shfl_xor_sync(~0u, own.total[row], 2);
  }

  const int thread = threadIdx.x % 64;
  const auto add_halves = [&] {
    if (half == 1) own.save(shared + thread);
    __syncthreads();
    if (half == 1) return;
    Partial other;
    other.load(shared + thread);
    own.add(other);
  };
  add_halves();
  if (splits > 1) {
    const i64 place = (i64)blockIdx.x * HEADS + head;
    float* all = partial + place * splits * kState * 64 + thread;
    if (half == 0) own.save(all + (i64)blockIdx.z * kState * 64);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      is_last = atomicAdd(arrived + place, 1) == splits - 1;
      if (is_last) arrived[place] = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    own.clear();
    for (int split = half; split < splits; split += 2) {
      Partial other;
      other.load(all + (i64)split * kState * 64);
      own.add(other);
    }
    add_halves();
  }
  if (half == 1) return;
  for (int row = 0; row < 2; ++row) {
    if (part + g + 8 * row >= tile.y) continue;
    bf16* to = out + ((i64)(tile.x + part + g + 8 * row) * HEADS + head) * HEAD_SIZE;
    const float scale_out = 1 / own.total[row];
    for (int c = 0; c < 2; ++c) {
      u32* column = (u32*)(to + (2 * t + c) * kColumns);
      for (int j = 0; j < kWords; ++j) {
        column[j] = pack(own.sum[2 * j][2 * row + c] * scale_out,
                         own.sum[2 * j + 1][2 * row + c] * scale_out);
      }
    }
  }
}

#endif

// --- Logits --------------------------------------------------------------------------------------

/// What is known of some logits: the best that may be chosen, the greatest of the others, and the sums
/// of exp(x - most) and of (x - most) exp(x - most).
struct Statistics {
  float best = -1e30f, other = -1e30f, most = -1e30f, total = 0, weighted = 0;
  int token = 0x7fffffff;  // none yet

  __device__ void offer(float x, int id) {
    if (id < VOCAB && id != MASK_TOKEN && (x > best || token == 0x7fffffff)) {
      other = fmaxf(other, best);
      best = x;
      token = id;
    } else {
      other = fmaxf(other, x);
    }
  }
  __device__ void raise(float larger) {
    const float factor = exp2_fast((most - larger) * LOG2E);
    weighted = factor * (weighted + (most - larger) * total);
    total *= factor;
    most = larger;
  }
  __device__ void add(float x) {
    // A logit of -infinity has a share of 0, and 0 * -infinity is none.
    const float below = fmaxf(x - most, -1e4f), share = exp2_fast(below * LOG2E);
    total += share;
    weighted += share * below;
  }
  __device__ void merge(float best_, float other_, float most_, float total_, float weighted_,
                        int token_) {
    const bool wins = best_ > best || (best_ == best && token_ < token);
    other = fmaxf(fmaxf(other, other_), wins ? best : best_);
    if (wins) {
      best = best_;
      token = token_;
    }
    const float larger = fmaxf(most, most_), factor = exp2_fast((most_ - larger) * LOG2E);
    raise(larger);
    total += total_ * factor;
    weighted += factor * (weighted_ + (most_ - larger) * total_);
  }
};

/// Of each row of logits [W, LOGITS]: token (its bits), probability, margin, entropy; float [W, 4].
/// Grid W, block 512.
extern "C" __global__ void __launch_bounds__(512) row_statistics(const bf16* logits, float* out) {
  constexpr int kWide = LOGITS % 8 == 0 ? 8 : 1;
  __shared__ Statistics warps[16];
  const bf16* row = logits + (i64)blockIdx.x * LOGITS;
  Statistics own;
  for (int i = threadIdx.x * kWide; i < LOGITS; i += 512 * kWide) {
    float x[kWide];
    if constexpr (kWide == 8) {
      const uint4 v = *(const uint4*)(row + i);
      x[0] = low(v.x), x[1] = high(v.x), x[2] = low(v.y), x[3] = high(v.y);
      x[4] = low(v.z), x[5] = high(v.z), x[6] = low(v.w), x[7] = high(v.w);
    } else {
      x[0] = low(row[i]);
    }
    float most = x[0];
    for (int j = 1; j < kWide; ++j) most = fmaxf(most, x[j]);
    if (most > own.most) own.raise(most);
    for (int j = 0; j < kWide; ++j) {
      own.offer(x[j], i + j);
      own.add(x[j]);
    }
  }
  for (int step = 16; step > 0; step /= 2) {
    own.merge(__shfl_xor_sync(~0u, own.best, step), __shfl_xor_sync(~0u, own.other, step),
              __shfl_xor_sync(~0u, own.most, step), __shfl_xor_sync(~0u, own.total, step),
              __shfl_xor_sync(~0u, own.weighted, step), __shfl_xor_sync(~0u, own.token, step));
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < 16; ++i) {
    const Statistics& s = warps[i];
    own.merge(s.best, s.other, s.most, s.total, s.weighted, s.token);
  }
  const float best = expf(own.best - own.most) / own.total;
  float* to = out + (i64)blockIdx.x * 4;
  to[0] = __int_as_float(own.token);
  to[1] = best;
  to[2] = best - expf(own.other - own.most) / own.total;
  to[3] = logf(own.total) - own.weighted / own.total;
}
