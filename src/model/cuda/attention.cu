// --- Attention -----------------------------------------------------------------------------------

#if HEAD_SIZE == 32 || HEAD_SIZE == 64 || HEAD_SIZE == 128

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

