// --- Mixtures of experts -------------------------------------------------------------------------
//
// Macros: EXPERTS E (0: the model has none), CHOSEN k of them a token, and SHARED S more that every token takes, which come
// first: as most rows want them, they take longest. GROUPS, CHOSEN_GROUPS, SIGMOID, ROUTER_BIAS (0: none, 1: counts in the
// choice, 2: in the weight as well), NORMALIZED, WEIGHT_SCALE; EXPERT_FP8: weights are float8 e4m3 with a scale a row.
// A token's pairs are it with each of its K = k + S experts: pair token * K + j. Sorted by expert, pairs have places.
// A forward of few rows waits for memory at each step of these kernels, not for arithmetic. So each has many loads
// under way at a time.

#if EXPERTS > 0

constexpr int kAllExperts = EXPERTS + SHARED, kTaken = CHOSEN + SHARED;
constexpr float kLeast = -1e30f;

/// logits [N, E] = x [N, d] router [E, d] transposed, router in float32. A warp has an expert and four
/// rows: grid (E / 8, N / 4), block 256.
extern "C" __global__ void __launch_bounds__(256)
    router_logits(const bf16* x, const float* router, int rows, float* logits) {
  constexpr int kRows = 4;
  const int expert = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = blockIdx.y * kRows;
  if (expert >= EXPERTS) return;
  const float4* weights = (const float4*)(router + (i64)expert * HIDDEN);
  float sum[kRows] = {};
#pragma unroll 4
  for (int i = lane; i < HIDDEN / 8; i += 32) {
    const float4 a = weights[2 * i], b = weights[2 * i + 1];
    const float w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = min(first + r, rows - 1);
      const Eight e = Eight::of(((const uint4*)(x + (i64)row * HIDDEN))[i]);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[r] += e.x[j] * w[j];
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    for (int step = 16; step > 0; step /= 2) sum[r] += __shfl_xor_sync(~0u, sum[r], step);
    if (lane == 0 && first + r < rows) logits[(i64)(first + r) * EXPERTS + expert] = sum[r];
  }
}

__device__ __forceinline__ float over_warp(float x, bool greatest) {
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(~0u, x, step);
    x = greatest ? fmaxf(x, other) : x + other;
  }
  return x;
}

/// Numbers of a warp: thread l has those at l, l + 32, and so on.
template <int kCount>
struct OverWarp {
  static constexpr int kEach = (kCount + 31) / 32;
  float x[kEach];

  /// Where the greatest is, the first of equals; it is taken out.
  __device__ __forceinline__ int take_greatest(int lane) {
    float best = x[0];
    int where = lane;
#pragma unroll
    for (int n = 1; n < kEach; ++n) {
      if (x[n] > best) best = x[n], where = lane + 32 * n;
    }
    const u32 bits = __float_as_uint(best);  // in the order of floats:
    const u32 rank = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    const u32 most = __reduce_max_sync(~0u, rank);
    where = (int)__reduce_min_sync(~0u, rank == most ? (u32)where : ~0u);
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      if (where == lane + 32 * n) x[n] = kLeast;
    }
    return min(where, kCount - 1);
  }
};

/// experts [N, K] and weights [N, K] of each row, by its logits [N, E]. A row whose slot is below 0 is
/// padding: its experts are -1. slots: null, or [N]. A warp has a row: grid N / 8, block 256.
extern "C" __global__ void __launch_bounds__(256)
    choose_experts(const float* logits, const float* bias, const i64* slots, int rows, int* experts,
                   float* weights) {
  using All = OverWarp<EXPERTS>;
  __shared__ float of_rows[8][All::kEach * 32];
  const int lane = threadIdx.x % 32, row = blockIdx.x * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  int* chosen = experts + (i64)row * kTaken;
  float* weight = weights + (i64)row * kTaken;
  if (slots && slots[row] < 0) {
    for (int j = lane; j < kTaken; j += 32) chosen[j] = -1;
    return;
  }
  for (int j = lane; j < SHARED; j += 32) chosen[j] = j, weight[j] = 1;
  const float* from = logits + (i64)row * EXPERTS;
  All scores, for_choice;  // what weights are made of, and what the choice goes by
  float most = kLeast, total = 0;
#pragma unroll
  for (int n = 0; n < All::kEach; ++n) {
    const int i = lane + 32 * n;
    scores.x[n] = i < EXPERTS ? from[i] : kLeast;
    most = fmaxf(most, scores.x[n]);
  }
  most = over_warp(most, true);
#pragma unroll
  for (int n = 0; n < All::kEach; ++n) {
    float& score = scores.x[n];
    score = SIGMOID ? 1 / (1 + expf(-score)) : expf(score - most);
    if (lane + 32 * n < EXPERTS) total += score;
  }
  total = SIGMOID ? 1 : over_warp(total, false);
#pragma unroll
  for (int n = 0; n < All::kEach; ++n) {
    const int i = lane + 32 * n;
    const float score = scores.x[n] / total;
    for_choice.x[n] = i >= EXPERTS ? kLeast : ROUTER_BIAS ? score + bias[i] : score;
    scores.x[n] = ROUTER_BIAS == 2 ? for_choice.x[n] : score;
  }
  float* const shared = of_rows[threadIdx.x / 32];
  if constexpr (CHOSEN_GROUPS < GROUPS) {
    constexpr int kSize = EXPERTS / GROUPS;
    OverWarp<GROUPS> groups;
#pragma unroll
    for (int n = 0; n < All::kEach; ++n) shared[lane + 32 * n] = for_choice.x[n];
    __syncwarp();
#pragma unroll
    for (int n = 0; n < OverWarp<GROUPS>::kEach; ++n) {
      const int group = lane + 32 * n;
      float first = kLeast, second = kSize > 1 ? kLeast : 0;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        // Threads begin at different places, so that they read different banks.
        const float x = shared[min(group, GROUPS - 1) * kSize + (i + group) % kSize];
        if (kSize > 1) second = fmaxf(second, fminf(first, x));
        first = fmaxf(first, x);
      }
      groups.x[n] = group < GROUPS ? first + second : kLeast;
    }
    u32 in[(GROUPS + 31) / 32] = {};
    for (int j = 0; j < CHOSEN_GROUPS; ++j) {
      const int group = groups.take_greatest(lane);
      in[group / 32] |= 1u << group % 32;
    }
#pragma unroll
    for (int n = 0; n < All::kEach; ++n) {
      const int group = min((lane + 32 * n) / kSize, GROUPS - 1);
      if (!(in[group / 32] >> group % 32 & 1)) for_choice.x[n] = kLeast;
    }
    __syncwarp();
  }
#pragma unroll
  for (int n = 0; n < All::kEach; ++n) shared[lane + 32 * n] = scores.x[n];
  __syncwarp();
  total = 0;
  for (int j = 0; j < CHOSEN; ++j) {
    const int expert = for_choice.take_greatest(lane);
    total += shared[expert];
    if (lane == j % 32) chosen[SHARED + j] = SHARED + expert, weight[SHARED + j] = shared[expert];
  }
  const float scale = NORMALIZED ? WEIGHT_SCALE / (total + 1e-20f) : WEIGHT_SCALE;
  for (int j = lane; j < CHOSEN; j += 32) weight[SHARED + j] *= scale;
}

/// Sorts pairs by expert: sorted [P] has each place's pair. In which order an expert's pairs stand
/// changes no result. tiles [num_tiles] are {expert, first place, places (1 to 32; 0: none), 0}. One block of 1024.
extern "C" __global__ void __launch_bounds__(1024)
    sort_pairs(const int* experts, int pairs, int num_tiles, int* sorted, int4* tiles) {
  __shared__ int begin[kAllExperts + 1], first_tile[kAllExperts + 1], next[kAllExperts];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i <= kAllExperts; i += 1024) begin[i] = 0;
  __syncthreads();
  for (int pair = threadIdx.x; pair < pairs; pair += 1024) {
    const int expert = experts[pair];
    if (expert >= 0) atomicAdd(&begin[expert + 1], 1);
  }
  __syncthreads();
  for (int i = threadIdx.x; i <= kAllExperts; i += 1024) first_tile[i] = (begin[i] + 31) / 32;
  __syncthreads();
  if (warp < 2) {  // sums up to each
    int* sums = warp == 0 ? begin : first_tile;
    int before = 0;
    for (int at = 1; at <= kAllExperts; at += 32) {
      int x = at + lane <= kAllExperts ? sums[at + lane] : 0;
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, x, step);
        if (lane >= step) x += other;
      }
      x += before;
      if (at + lane <= kAllExperts) sums[at + lane] = x;
      before = __shfl_sync(~0u, x, 31);
    }
  }
  __syncthreads();
  for (int expert = threadIdx.x; expert < kAllExperts; expert += 1024) {
    next[expert] = begin[expert];
    const int tile = first_tile[expert], count = begin[expert + 1] - begin[expert];
    for (int i = 0; 32 * i < count; ++i) {
      tiles[tile + i] = make_int4(expert, begin[expert] + 32 * i, min(32, count - 32 * i), 0);
    }
  }
  for (int i = first_tile[kAllExperts] + threadIdx.x; i < num_tiles; i += 1024) {
    tiles[i] = make_int4(0, 0, 0, 0);
  }
  __syncthreads();
  for (int pair = threadIdx.x; pair < pairs; pair += 1024) {
    const int expert = experts[pair];
    if (expert >= 0) sorted[atomicAdd(&next[expert], 1)] = pair;
  }
}

constexpr int kAhead = 6;  // steps whose weights are under way
#if EXPERT_FP8
typedef unsigned char ExpertWeight;
#else
typedef bf16 ExpertWeight;
#endif
constexpr int kLine = 16 / sizeof(ExpertWeight);  // weights that a thread uses in a step, of a row
constexpr int kInputs = kLine / 8;                // 16 bytes of the input that go with them

/// Pair `i` of two weights of a line, in bfloat16.
__device__ __forceinline__ u32 weight_pair(const uint4& line, int i) {
  const u32 words[4] = {line.x, line.y, line.z, line.w};
#if EXPERT_FP8
  // With the bits of e4m3 in its places, a bfloat16 is 2^-120 times as large, and so are the smallest.
  const u32 two = __byte_perm(words[i / 2], 0, i % 2 ? 0x3424 : 0x1404);
  const u32 small = (two >> 4 & 0x07f007f0) | (two & 0x80008000);
  u32 pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(small), "r"(0x7b807b80), "r"(0x80008000));
  return pair;
#else
  return words[i];
#endif
}

/// A tile of `multiply_by_expert` with at most 8 kTokens rows.
template <int kTokens>
__device__ __forceinline__ void multiply_tile(const uint4* weights, const float* scales,
                                              int outputs, int depth, bool gates,
                                              const uint4* input, const int* sorted, int first,
                                              int count, uint4 (*arriving)[4][128], bf16* out) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int column = (blockIdx.x * 4 + warp) * (gates ? 16 : 32);  // of the result
  const int second = column + (gates ? outputs : 16), end = gates ? 2 * outputs : outputs;
  const u32 stride = depth / kLine;
  const int steps = depth / (4 * kLine);
  u32 weight[4], token[kTokens];  // where this thread's lines begin
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    weight[r] = (u32)min((r < 2 ? column : second) + g + 8 * (r % 2), end - 1) * stride + t;
  }
#pragma unroll
  for (int n = 0; n < kTokens; ++n) {
    const int at = first + min(8 * n + g, count - 1);
    token[n] = ((u32)(gates ? sorted[at] / kTaken : at) * stride + t) * kInputs;
  }
  // Each thread reads what it fetched itself, so that no thread waits for another.
  const auto fetch_step = [&](int step, int slot) {
    if (step < steps) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        fetch(&arriving[slot][r][threadIdx.x], weights + weight[r] + 4 * step);
      }
    }
    end_of_step();
  };
#pragma unroll
  for (int s = 0; s < kAhead; ++s) fetch_step(s, s);
  float sum[2][kTokens][4] = {};
  uint4 b[kTokens][kInputs];
  const auto read_input = [&](int step) {
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
#pragma unroll
      for (int i = 0; i < kInputs; ++i) b[n][i] = __ldg(input + token[n] + 4 * kInputs * step + i);
    }
  };
  read_input(0);
#pragma unroll 2  // left to itself the compiler unrolls, or not, by chance
  for (int step = 0, slot = 0; step < steps; ++step) {
    wait_for_steps<kAhead - 1>();
    uint4 a[4], now[kTokens][kInputs];
#pragma unroll
    for (int r = 0; r < 4; ++r) a[r] = arriving[slot][r][threadIdx.x];
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
#pragma unroll
      for (int i = 0; i < kInputs; ++i) now[n][i] = b[n][i];
    }
    read_input(min(step + 1, steps - 1));
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint4 lo = a[2 * m], hi = a[2 * m + 1];
#pragma unroll
      for (int i = 0; i < 2 * kInputs; ++i) {
        const u32 a0 = weight_pair(lo, 2 * i), a1 = weight_pair(hi, 2 * i);
        const u32 a2 = weight_pair(lo, 2 * i + 1), a3 = weight_pair(hi, 2 * i + 1);
#pragma unroll
        for (int n = 0; n < kTokens; ++n) {
          const uint4& in = now[n][i / 2];
          multiply(sum[m][n], a0, a1, a2, a3, i % 2 ? in.z : in.x, i % 2 ? in.w : in.y);
        }
      }
    }
    fetch_step(step + kAhead, slot);
    slot = slot + 1 < kAhead ? slot + 1 : 0;
  }
#if EXPERT_FP8
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float scale = scales[min((i < 2 ? column : second) + g + 8 * (i % 2), end - 1)];
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
      sum[i / 2][n][2 * (i % 2)] *= scale;
      sum[i / 2][n][2 * (i % 2) + 1] *= scale;
    }
  }
#endif
  const auto put = [&](bf16* row, int at, float value) {
    if (at < outputs) row[at] = (bf16)pack(value, 0);
  };
#pragma unroll
  for (int n = 0; n < kTokens; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = 8 * n + 2 * t + i % 2, inside = g + i / 2 * 8;
      if (at >= count) continue;
      bf16* row = out + (i64)(gates ? first + at : sorted[first + at]) * outputs;
      if (gates) {
        const u32 both = pack(sum[0][n][i], sum[1][n][i]);  // rounded, as a product's result is
        put(row, column + inside, silu(low(both)) * high(both));
      } else {
        put(row, column + inside, sum[0][n][i]);
        put(row, second + inside, sum[1][n][i]);
      }
    }
  }
}

/// Products with each place's expert. With `gates` input is [N, depth], weights are
/// [S + E, 2 outputs, depth], and out [P, outputs], by places, is silu(first half of the product) *
/// second half. Without, input is [P, depth], by places, weights are [S + E, outputs, depth], and out
/// is [P, outputs], by pairs. scales: of each row of the weights, if they are float8.
/// depth: a multiple of 32, with float8 of 64. Grid (outputs / 128, or / 64 with `gates`; tiles), block 128.
///
/// Few rows want an expert, so its matrix is what takes time: it goes from memory to the registers of
/// the products by way of the thread that multiplies, 64 neighbouring bytes of a row at a time. The
/// order in which a product adds does not matter, so a thread uses its 16 bytes of a line of weights
/// with the same values of the input.
extern "C" __global__ void __launch_bounds__(128, 4)
    multiply_by_expert(const ExpertWeight* weights, const float* scales, int outputs, int depth,
                       int gates, const bf16* input, const int* sorted, const int4* tiles,
                       bf16* out) {
  __shared__ uint4 arriving[kAhead][4][128];
  const int4 tile = tiles[blockIdx.y];
  if (tile.z == 0) return;
  const i64 first_row = (i64)tile.x * (gates ? 2 : 1) * outputs;
  const uint4* own = (const uint4*)(weights + first_row * depth);
  const uint4* from = (const uint4*)input;
  const float* scale = scales + (EXPERT_FP8 ? first_row : 0);
  if (tile.z <= 8) {
    multiply_tile<1>(own, scale, outputs, depth, gates, from, sorted, tile.y, tile.z, arriving, out);
  } else if (tile.z <= 16) {
    multiply_tile<2>(own, scale, outputs, depth, gates, from, sorted, tile.y, tile.z, arriving, out);
  } else {
    multiply_tile<4>(own, scale, outputs, depth, gates, from, sorted, tile.y, tile.z, arriving, out);
  }
}

/// x [N, d] += the results [N, K, d] of a row's pairs, weighted [N, K], in the order of its choice. Padding
/// has none. Grid N, block 256.
extern "C" __global__ void __launch_bounds__(256)
    add_weighted(const bf16* results, const int* experts, const float* weights, bf16* x) {
  const i64 first = (i64)blockIdx.x * kTaken;
  if (experts[first] < 0) return;
  uint4* row = (uint4*)(x + (i64)blockIdx.x * HIDDEN);
  for (int i = threadIdx.x; i < HIDDEN / 8; i += 256) {
    Eight sum = {};
#pragma unroll
    for (int j = 0; j < kTaken; ++j) {
      const Eight e = Eight::of(((const uint4*)(results + (first + j) * HIDDEN))[i]);
      const float weight = weights[first + j];
#pragma unroll
      for (int c = 0; c < 8; ++c) sum.x[c] += weight * e.x[c];
    }
    row[i] = added(row[i], sum.packed());
  }
}

#endif
