// --- Attention -----------------------------------------------------------------------------------

#if HEAD_SIZE == 32 || HEAD_SIZE == 64 || HEAD_SIZE == 128

constexpr int kColumns = HEAD_SIZE / 8;   // pieces of 8 values of a head: 16 bytes
constexpr int kState = 4 * kColumns + 4;  // floats of a thread: sums, and max and total of 2 rows

/// 32 rows of one head in shared memory. Where a row keeps a piece depends on the row, so that the same
/// piece of eight rows is in eight different banks.
struct HeadRows {
  uint4 pieces[32][kColumns];

  __device__ __forceinline__ uint4* at(int row, int piece) {
    return &pieces[row][piece ^ (kColumns < 8 ? row / 2 % 4 : row % 8)];
  }
  /// Four matrices of 8 rows and 8 values; lane l names row l % 8 of matrix l / 8.
  template <bool kTransposed>
  __device__ __forceinline__ uint4 load(int row, int piece) {
    uint4 x;
    const u32 from = (u32)__cvta_generic_to_shared(at(row, piece));
    if constexpr (kTransposed) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                   : "r"(from)
                   : "memory");
    } else {
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                   : "r"(from)
                   : "memory");
    }
    return x;
  }
};
struct AttentionStep {
  HeadRows keys, values;
};
/// Steps that a block has in shared memory, all but one of them under way.
constexpr int kSteps = HEAD_SIZE == 128 ? 3 : 6;  // no more than the 48 KiB of any card

/// What a thread has of the attention of two query rows: rows g and g + 8 of 16. `kCount` columns.
template <int kCount>
struct Partial {
  float sum[kCount][4];  // of two values of piece j: row g: 0, 1; row g + 8: 2, 3
  float most[2];         // of the scores so far, times log2(e)
  float total[2];        // of their exponentials

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < kCount; ++j) sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0;
    most[0] = most[1] = -1e30f;
    total[0] = total[1] = 0;
  }
  __device__ __forceinline__ void rescale(int row, float larger) {
    const float factor = exp2_fast(most[row] - larger);
    most[row] = larger;
    total[row] *= factor;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      sum[j][2 * row] *= factor;
      sum[j][2 * row + 1] *= factor;
    }
  }
  /// Columns from `first` on, to [kState][64]: neighbouring threads side by side.
  __device__ __forceinline__ void save(float* to, int first) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[(4 * (first + j) + i) * 64] = sum[j][i];
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      to[(4 * kColumns + row) * 64] = most[row];
      to[(4 * kColumns + 2 + row) * 64] = total[row];
    }
  }
  /// The sum of `parts` that were saved, in their order; of the columns from `first` on.
  __device__ __forceinline__ void load_sum(const float* from, int parts, int first) {
    clear();
#pragma unroll 4
    for (int p = 0; p < parts; ++p) {
      for (int row = 0; row < 2; ++row) {
        most[row] = fmaxf(most[row], from[(p * kState + 4 * kColumns + row) * 64]);
      }
    }
#pragma unroll 4
    for (int p = 0; p < parts; ++p) {
      const float* part = from + p * kState * 64;
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float factor = exp2_fast(part[(4 * kColumns + row) * 64] - most[row]);
        total[row] += part[(4 * kColumns + 2 + row) * 64] * factor;
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          sum[j][2 * row] += part[(4 * (first + j) + 2 * row) * 64] * factor;
          sum[j][2 * row + 1] += part[(4 * (first + j) + 2 * row + 1) * 64] * factor;
        }
      }
    }
  }
};

/// Attention without a mask: queries [N, H D], `stride` values from row to row, over keys and values of
/// the pool [tokens, G, D]; out [N, H D]. A tile is {first row, rows (1 to 32; 0: padding), first
/// key, keys}. Grid (tiles, H, splits), block 128: two warps for the rows, times two for the keys. With
/// splits each part of the keys is a block of its own, and the one that ends last adds them up, in
/// their order. partial: float [tiles, H, splits, kState, 64]; arrived: [tiles, H], zeros before and
/// after.
extern "C" __global__ void __launch_bounds__(128)
    attend(const bf16* queries, i64 stride, const bf16* keys, const bf16* values, const int4* tiles,
           bf16* out, float* partial, int* arrived) {
  __shared__ union {
    AttentionStep steps[kSteps];
    struct {
      float parts[2][kState][64];
      int is_last;
    };
  } shared;
  const int4 tile = tiles[blockIdx.x];
  if (tile.y == 0) return;
  const int head = blockIdx.y, splits = gridDim.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int part = warp % 2 * 16, half = warp / 2;
  const int chunk = (tile.w + splits * 32 - 1) / (splits * 32) * 32;
  const int begin = blockIdx.z * chunk, end = min(tile.w, begin + chunk);
  const int num_steps = (end - begin + 31) / 32;

  // Rows that are none are the last one.
  const auto fetch_rows = [&](HeadRows& to, const bf16* from, int first, int last, i64 step) {
    const int piece = threadIdx.x % kColumns;
#pragma unroll
    for (int i = 0; i < 32 * kColumns / 128; ++i) {
      const int row = (i * 128 + threadIdx.x) / kColumns;
      fetch(to.at(row, piece), (const uint4*)(from + min(first + row, last) * step) + piece);
    }
  };
  const int kv_head = head / (HEADS / KV_HEADS);
  const i64 first = ((i64)tile.z * KV_HEADS + kv_head) * HEAD_SIZE;
  const auto fetch_step = [&](int step, int slot) {
    if (step < num_steps) {
      constexpr i64 kStride = KV_HEADS * HEAD_SIZE;
      const int key = begin + 32 * step;
      fetch_rows(shared.steps[slot].keys, keys + first, key, end - 1, kStride);
      fetch_rows(shared.steps[slot].values, values + first, key, end - 1, kStride);
    }
    end_of_step();
  };
  HeadRows& rows = shared.steps[kSteps - 1].keys;
  fetch_rows(rows, queries + tile.x * stride + head * HEAD_SIZE, 0, tile.y - 1, stride);
  end_of_step();
#pragma unroll
  for (int s = 0; s < kSteps - 1; ++s) fetch_step(s, s);

  uint4 query[kColumns / 2];
  wait_for_steps<kSteps - 1>();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    query[i] = rows.load<false>(part + lane % 16, 2 * i + lane / 16);
  }

  Partial<kColumns> own;
  own.clear();
  const float scale = LOG2E * rsqrtf((float)HEAD_SIZE);
  for (int step = 0, slot = 0; step < num_steps; ++step) {
    wait_for_steps<kSteps - 2>();
    __syncthreads();  // all have fetched this step, and done with the one before
    fetch_step(step + kSteps - 1, slot == 0 ? kSteps - 1 : slot - 1);
    AttentionStep& now = shared.steps[slot];
    slot = slot + 1 < kSteps ? slot + 1 : 0;
    const int base = begin + 32 * step + 16 * half;
    if (base >= end) break;
    float score[2][4] = {};
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint4 k = now.keys.load<false>(16 * half + 8 * n + lane % 8, 4 * i + lane / 8);
        const uint4 a = query[2 * i], b = query[2 * i + 1];
        multiply(score[n], a.x, a.y, a.z, a.w, k.x, k.y);
        multiply(score[n], b.x, b.y, b.z, b.w, k.z, k.w);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool is_key = base + 8 * n + 2 * t + i % 2 < end;
        score[n][i] = is_key ? score[n][i] * scale : -1e30f;
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float most = fmaxf(fmaxf(score[0][2 * row], score[0][2 * row + 1]),
                         fmaxf(score[1][2 * row], score[1][2 * row + 1]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      own.rescale(row, fmaxf(own.most[row], most));
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 2 * row; i < 2 * row + 2; ++i) {
          score[n][i] = exp2_fast(score[n][i] - own.most[row]);
          own.total[row] += score[n][i];
        }
      }
    }
    const u32 a0 = pack(score[0][0], score[0][1]), a1 = pack(score[0][2], score[0][3]);
    const u32 a2 = pack(score[1][0], score[1][1]), a3 = pack(score[1][2], score[1][3]);
#pragma unroll
    for (int j = 0; j < kColumns; j += 2) {
      const uint4 v = now.values.load<true>(16 * half + lane % 16, j + lane / 16);
      multiply(own.sum[j], a0, a1, a2, a3, v.x, v.y);
      multiply(own.sum[j + 1], a0, a1, a2, a3, v.z, v.w);
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    own.total[row] += __shfl_xor_sync(~0u, own.total[row], 1);
    own.total[row] += __shfl_xor_sync(~0u, own.total[row], 2);
  }

  // Each half adds up half of the columns: first of both halves, then of all parts of the keys.
  const int thread = threadIdx.x % 64, first_column = half * (kColumns / 2);
  __syncthreads();
  own.save(&shared.parts[half][0][thread], 0);
  __syncthreads();
  Partial<kColumns / 2> result;
  result.load_sum(&shared.parts[0][0][thread], 2, first_column);
  if (splits > 1) {
    const i64 place = (i64)blockIdx.x * HEADS + head;
    float* all = partial + place * splits * kState * 64 + thread;
    result.save(all + (i64)blockIdx.z * kState * 64, first_column);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      shared.is_last = atomicAdd(arrived + place, 1) == splits - 1;
      if (shared.is_last) arrived[place] = 0;
    }
    __syncthreads();
    if (!shared.is_last) return;
    __threadfence();
    result.load_sum(all, splits, first_column);
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    if (part + g + 8 * row >= tile.y) continue;
    bf16* to = out + ((i64)(tile.x + part + g + 8 * row) * HEADS + head) * HEAD_SIZE;
    const float scale_out = 1 / result.total[row];
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j) {
      *(u32*)(to + (first_column + j) * 8 + 2 * t) =
          pack(result.sum[j][2 * row] * scale_out, result.sum[j][2 * row + 1] * scale_out);
    }
  }
}

#endif
