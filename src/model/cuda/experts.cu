// --- Mixtures of experts -------------------------------------------------------------------------
//
// Macros: EXPERTS E (0: the model has none), CHOSEN k a token, EXPERT width w of one, GROUPS, CHOSEN_GROUPS,
// SIGMOID, ROUTER_BIAS (0: none, 1: counts in the choice, 2: in the weight as well), NORMALIZED, WEIGHT_SCALE.
// A token's pairs are it with each of its experts: pair token * k + j. Sorted by expert, pairs have places.

#if EXPERTS > 0

constexpr float kLeast = -1e30f;

/// logits [N, E] = x [N, d] router [E, d] transposed, router in float32. A warp has an expert and eight
/// rows: grid (E / 8, N / 8), block 256.
extern "C" __global__ void __launch_bounds__(256)
    router_logits(const bf16* x, const float* router, int rows, float* logits) {
  constexpr int kRows = 8;
  const int expert = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = blockIdx.y * kRows;
  if (expert >= EXPERTS) return;
  const float4* weights = (const float4*)(router + (i64)expert * HIDDEN);
  float sum[kRows] = {};
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

/// The number, below `count`, of the greatest of values in shared memory, the first of equals; it is
/// taken out. All of a warp.
__device__ __forceinline__ int take_greatest(float* values, int count, int lane) {
  float best = kLeast;
  int where = lane;
  for (int i = lane; i < count; i += 32) {
    if (values[i] > best) best = values[i], where = i;
  }
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(~0u, best, step);
    const int there = __shfl_xor_sync(~0u, where, step);
    if (other > best || (other == best && there < where)) best = other, where = there;
  }
  where = min(where, count - 1);
  __syncwarp();
  if (lane == 0) values[where] = kLeast;
  __syncwarp();
  return where;
}

/// experts [N, k] and weights [N, k] of each row, by its logits [N, E]. A row whose slot is below 0 is
/// padding: its experts are -1. slots: null, or [N]. A warp has a row: grid N / 8, block 256.
extern "C" __global__ void __launch_bounds__(256)
    choose_experts(const float* logits, const float* bias, const i64* slots, int rows, int* experts,
                   float* weights) {
  __shared__ float of_all[8][2 * EXPERTS];
  __shared__ float of_groups[8][GROUPS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = blockIdx.x * 8 + warp;
  if (row >= rows) return;
  int* chosen = experts + (i64)row * CHOSEN;
  if (slots && slots[row] < 0) {
    for (int j = lane; j < CHOSEN; j += 32) chosen[j] = -1;
    return;
  }
  float* scores = of_all[warp];             // that weights are made of
  float* for_choice = of_all[warp] + EXPERTS;
  const float* from = logits + (i64)row * EXPERTS;
  float most = kLeast, total = 0;
  if (!SIGMOID) {
    for (int i = lane; i < EXPERTS; i += 32) most = fmaxf(most, from[i]);
    most = over_warp(most, true);
    for (int i = lane; i < EXPERTS; i += 32) total += expf(from[i] - most);
    total = over_warp(total, false);
  }
  for (int i = lane; i < EXPERTS; i += 32) {
    const float score = SIGMOID ? 1 / (1 + expf(-from[i])) : expf(from[i] - most) / total;
    for_choice[i] = ROUTER_BIAS ? score + bias[i] : score;
    scores[i] = ROUTER_BIAS == 2 ? for_choice[i] : score;
  }
  __syncwarp();
  if constexpr (CHOSEN_GROUPS < GROUPS) {
    constexpr int kSize = EXPERTS / GROUPS;
    float* groups = of_groups[warp];
    for (int group = lane; group < GROUPS; group += 32) {
      float first = kLeast, second = kSize > 1 ? kLeast : 0;
      for (int i = group * kSize; i < (group + 1) * kSize; ++i) {
        if (for_choice[i] > first) {
          if (kSize > 1) second = first;
          first = for_choice[i];
        } else if (for_choice[i] > second) {
          second = for_choice[i];
        }
      }
      groups[group] = first + second;
    }
    __syncwarp();
    u32 in[(GROUPS + 31) / 32] = {};
    for (int j = 0; j < CHOSEN_GROUPS; ++j) {
      const int group = take_greatest(groups, GROUPS, lane);
      in[group / 32] |= 1u << group % 32;
    }
    for (int i = lane; i < EXPERTS; i += 32) {
      const int group = i / kSize;
      if (!(in[group / 32] >> group % 32 & 1)) for_choice[i] = kLeast;
    }
    __syncwarp();
  }
  total = 0;
  for (int j = 0; j < CHOSEN; ++j) {
    const int expert = take_greatest(for_choice, EXPERTS, lane);
    total += scores[expert];
    if (lane == 0) chosen[j] = expert;
  }
  __syncwarp();
  const float scale = NORMALIZED ? WEIGHT_SCALE / (total + 1e-20f) : WEIGHT_SCALE;
  for (int j = lane; j < CHOSEN; j += 32) weights[(i64)row * CHOSEN + j] = scores[chosen[j]] * scale;
}

/// Sorts pairs by expert, in their order: rows [P] has each place's row, places [P] each pair's place.
/// tiles [num_tiles] are {expert, first place, places (1 to 32; 0: none), 0}. One block of 1024.
extern "C" __global__ void __launch_bounds__(1024)
    sort_pairs(const int* experts, int pairs, int num_tiles, int* rows, int* places, int4* tiles) {
  __shared__ int begin[EXPERTS + 1], first_tile[EXPERTS + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto is_of = [&](int pair, int expert) {
    return __ballot_sync(~0u, pair < pairs && experts[pair] == expert);
  };
  for (int expert = warp; expert < EXPERTS; expert += 32) {
    int count = 0;
    for (int at = 0; at < pairs; at += 32) count += __popc(is_of(at + lane, expert));
    if (lane == 0) begin[expert + 1] = count, first_tile[expert + 1] = (count + 31) / 32;
  }
  if (threadIdx.x == 0) begin[0] = first_tile[0] = 0;
  __syncthreads();
  if (warp < 2) {  // sums up to each
    int* sums = warp == 0 ? begin : first_tile;
    int before = 0;
    for (int at = 1; at <= EXPERTS; at += 32) {
      int x = at + lane <= EXPERTS ? sums[at + lane] : 0;
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, x, step);
        if (lane >= step) x += other;
      }
      x += before;
      if (at + lane <= EXPERTS) sums[at + lane] = x;
      before = __shfl_sync(~0u, x, 31);
    }
  }
  __syncthreads();
  for (int expert = warp; expert < EXPERTS; expert += 32) {
    int place = begin[expert];
    for (int at = 0; at < pairs; at += 32) {
      const int pair = at + lane;
      const u32 all = is_of(pair, expert);
      if (all >> lane & 1) {
        const int here = place + __popc(all & ((1u << lane) - 1));
        rows[here] = pair / CHOSEN;
        places[pair] = here;
      }
      place += __popc(all);
    }
    const int tile = first_tile[expert], count = begin[expert + 1] - begin[expert];
    for (int i = lane; 32 * i < count; i += 32) {
      tiles[tile + i] = make_int4(expert, begin[expert] + 32 * i, min(32, count - 32 * i), 0);
    }
  }
  for (int i = first_tile[EXPERTS] + threadIdx.x; i < num_tiles; i += 1024) {
    tiles[i] = make_int4(0, 0, 0, 0);
  }
}

/// Read once: it would only push out what others read again.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

/// A tile of `multiply_by_expert` with at most 8 kTokens rows.
template <int kTokens>
__device__ __forceinline__ void multiply_tile(const uint4* weights, int outputs, int depth,
                                              bool gates, const uint4* input, const int* rows,
                                              int first, int count, bf16* out) {
  constexpr int kAhead = 2;  // loads of so many steps are under way
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int column = (blockIdx.x * 4 + warp) * (gates ? 16 : 32);  // of the result
  const int second = column + (gates ? outputs : 16), end = gates ? 2 * outputs : outputs;
  const u32 stride = depth / 8, steps = depth / 32;
  u32 weight[4], token[kTokens];  // where this thread's lines begin
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    weight[r] = (u32)min((r < 2 ? column : second) + g + 8 * (r % 2), end - 1) * stride + t;
  }
#pragma unroll
  for (int n = 0; n < kTokens; ++n) {
    const int at = first + min(8 * n + g, count - 1);
    token[n] = (u32)(rows ? rows[at] : at) * stride + t;
  }
  float sum[2][kTokens][4] = {};
  uint4 a[kAhead][4];
#pragma unroll
  for (int s = 0; s < kAhead; ++s) {
    if (s >= steps) break;
#pragma unroll
    for (int r = 0; r < 4; ++r) a[s][r] = load_once(weights + weight[r] + 4 * s);
  }
  for (int step = 0; step < steps; step += kAhead) {
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      if (step + s >= steps) break;
      uint4 b[kTokens];
#pragma unroll
      for (int n = 0; n < kTokens; ++n) b[n] = __ldg(input + token[n] + 4 * (step + s));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const uint4 lo = a[s][2 * m], hi = a[s][2 * m + 1];
#pragma unroll
        for (int n = 0; n < kTokens; ++n) {
          multiply(sum[m][n], lo.x, hi.x, lo.y, hi.y, b[n].x, b[n].y);
          multiply(sum[m][n], lo.z, hi.z, lo.w, hi.w, b[n].z, b[n].w);
        }
      }
      if (step + s + kAhead >= steps) continue;
#pragma unroll
      for (int r = 0; r < 4; ++r) a[s][r] = load_once(weights + weight[r] + 4 * (step + s + kAhead));
    }
  }
  const auto put = [&](bf16* row, int at, float value) {
    if (at < outputs) row[at] = (bf16)pack(value, 0);
  };
#pragma unroll
  for (int n = 0; n < kTokens; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = 8 * n + 2 * t + i % 2, inside = g + i / 2 * 8;
      if (at >= count) continue;
      bf16* row = out + (i64)(first + at) * outputs;
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

/// out [P, outputs] = each place's row of input [., depth] times its expert's weights [E, outputs, depth]
/// transposed. With `gates` weights are [E, 2 outputs, depth], and out = silu(first half) * second
/// half. rows [P]: each place's row of input; null: the place itself. depth: a multiple of 32.
/// Grid (outputs / 128, or / 64 with `gates`; tiles), block 128.
///
/// Few rows want an expert, so its matrix is what takes time: it goes from memory straight into the
/// registers of the products, 64 neighbouring bytes of a row at a time. The order in which a
/// product adds does not matter, so a thread uses its 16 bytes of a line of weights with the same
/// 16 bytes of the input.
extern "C" __global__ void __launch_bounds__(128, 4)
    multiply_by_expert(const bf16* weights, int outputs, int depth, int gates, const bf16* input,
                       const int* rows, const int4* tiles, bf16* out) {
  const int4 tile = tiles[blockIdx.y];
  if (tile.z == 0) return;
  const uint4* own = (const uint4*)(weights + (i64)tile.x * (gates ? 2 : 1) * outputs * depth);
  const uint4* from = (const uint4*)input;
  if (tile.z <= 8) {
    multiply_tile<1>(own, outputs, depth, gates, from, rows, tile.y, tile.z, out);
  } else if (tile.z <= 16) {
    multiply_tile<2>(own, outputs, depth, gates, from, rows, tile.y, tile.z, out);
  } else {
    multiply_tile<4>(own, outputs, depth, gates, from, rows, tile.y, tile.z, out);
  }
}

/// x [N, d] += the results [P, d] of a row's pairs, weighted [N, k], in the order of its choice. Padding
/// has none. Grid N, block 256.
extern "C" __global__ void __launch_bounds__(256)
    add_weighted(const bf16* results, const int* experts, const int* places, const float* weights,
                 bf16* x) {
  const i64 first = (i64)blockIdx.x * CHOSEN;
  if (experts[first] < 0) return;
  uint4* row = (uint4*)(x + (i64)blockIdx.x * HIDDEN);
  for (int i = threadIdx.x; i < HIDDEN / 8; i += 256) {
    Eight sum = {};
#pragma unroll
    for (int j = 0; j < CHOSEN; ++j) {
      const Eight e = Eight::of(((const uint4*)(results + (i64)places[first + j] * HIDDEN))[i]);
      const float weight = weights[first + j];
#pragma unroll
      for (int c = 0; c < 8; ++c) sum.x[c] += weight * e.x[c];
    }
    row[i] = added(row[i], sum.packed());
  }
}

#endif
