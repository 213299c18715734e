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

/// What is kept of a row: float [W, 8] of token (its bits), probability, confidence, margin, entropy, and
/// for `draw` the greatest logit and the sum of exp(x - that).
struct RowStatistics {
  int token;
  float probability, confidence, margin, entropy, most, total;
  int unused;
};

/// Of each row of logits [W, LOGITS], the most probable token that may be chosen. Grid W, block 512.
extern "C" __global__ void __launch_bounds__(512) row_statistics(const bf16* logits, RowStatistics* out) {
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
  const float margin = best - expf(own.other - own.most) / own.total;
  const float entropy = logf(own.total) - own.weighted / own.total;
  out[blockIdx.x] = {own.token, best, best, margin, entropy, own.most, own.total, 0};
}

/// What a row asks of `draw`.
struct DrawnRow {
  int row;        // of the logits
  int top_k;      // 0: off
  int draws;      // 0: the most probable token stays
  float inverse;  // 1 / temperature
  float top_p;    // 1: off
  float log_min_p;
  float uniform;
  /// Not 0: numbers are those of the distribution that is drawn from, and the tokens that may not be
  /// chosen have their shares in it.
  int filters_confidence;
};

/// Numbers in the order of the bfloat16 that have these bits.
__device__ __forceinline__ int order_of(u32 bits) {
  return bits & 0x8000 ? 0xffff ^ bits : 0x8000 | bits;
}

/// Draws as `sample_rows` does, for the rows of `drawn`, and changes their `statistics`. Grid: drawn
/// rows, block 512.
///
/// What top_p and top_k leave is what is not below a limit. As there are only 65,536 numbers, limits
/// are found bit by bit, a pass over the row for each. Of the tokens at the limit of top_p the first
/// `ties` stay.
extern "C" __global__ void __launch_bounds__(512)
    draw(const bf16* logits, const DrawnRow* drawn, RowStatistics* statistics) {
  constexpr int kWarps = 16, kEach = (LOGITS + kWarps * 32 - 1) / (kWarps * 32) * 32;
  __shared__ float warp_total[kWarps];
  __shared__ int warp_ties[kWarps];
  const DrawnRow ask = drawn[blockIdx.x];
  RowStatistics& result = statistics[ask.row];
  const bf16* row = logits + (i64)ask.row * LOGITS;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, best = result.token;
  const auto may_choose = [](int id) { return id < VOCAB && id != MASK_TOKEN; };
  const auto takes_part = [&](int id) { return ask.filters_confidence || may_choose(id); };
  const auto over_all = [&](auto value) {  // the sum of value(id, logit) over what takes part
    float sum = 0;
    for (int id = threadIdx.x; id < LOGITS; id += 512) {
      if (takes_part(id)) sum += value(low(row[id]), row[id]);
    }
    return over_block<false, kWarps>(sum);
  };

  float most = -1e30f;
  for (int id = threadIdx.x; id < LOGITS; id += 512) {
    if (takes_part(id)) most = fmaxf(most, low(row[id]));
  }
  most = over_block<true, kWarps>(most);
  const auto share = [&](float x) {  // times a constant
    const float below = fmaxf((x - most) * ask.inverse, -1e4f);
    return below < ask.log_min_p ? 0 : exp2_fast(below * LOG2E);
  };
  int limit = 0, ties = 0x7fffffff, at_least = 0;  // in the order of numbers
  if (ask.top_p < 1) {
    const double most_above =
        (double)ask.top_p * over_all([&](float x, u32) { return share(x); });
    const auto above = [&](int order) {
      return over_all([&](float x, u32 bits) { return order_of(bits) > order ? share(x) : 0; });
    };
    for (int bit = 0x8000; bit > 0; bit /= 2) {  // the least order with no more above it
      if (above(limit + bit - 1) > most_above) limit += bit;
    }
    const double left = most_above - above(limit);
    const u32 bits = limit & 0x8000 ? limit ^ 0x8000 : 0xffff ^ limit;
    const float one = share(low(bits));
    if (one > 0) ties = (int)fmin(left / one, 1e9) + 1;
  }
  if (ask.top_k > 0) {
    for (int bit = 0x8000; bit > 0; bit /= 2) {  // the greatest order that so many reach
      const float count = over_all([&](float, u32 bits) { return order_of(bits) >= at_least + bit; });
      if (count >= ask.top_k) at_least += bit;
    }
  }
  // Of the tokens that stay, in the order of their ids: a warp has neighbouring ones.
  const auto next = [&](int id, int end, int& ties_before, float& x) {  // all of a warp; 0: has gone
    const u32 bits = id < end ? row[id] : 0;
    const int order = order_of(bits);
    const bool in = id < end && takes_part(id);
    const u32 tied = __ballot_sync(~0u, in && order == limit);
    const int rank = ties_before + __popc(tied & ((1u << lane) - 1));
    ties_before += __popc(tied);
    x = low(bits);
    const bool stays = in && order >= at_least && (order > limit || (order == limit && rank < ties));
    return stays ? share(x) : 0;
  };
  const int begin = warp * kEach, end = min(LOGITS, begin + kEach);
  if (ask.top_p < 1) {
    int count = 0;
    for (int id = begin + lane; id < end; id += 32) count += takes_part(id) && order_of(row[id]) == limit;
    for (int step = 16; step > 0; step /= 2) count += __shfl_xor_sync(~0u, count, step);
    if (lane == 0) warp_ties[warp] = count;
    __syncthreads();
  }
  int first_ties = 0;
  for (int i = 0; ask.top_p < 1 && i < warp; ++i) first_ties += warp_ties[i];

  float total = 0, weighted = 0, to_choose = 0, of_best = 0, of_others = 0;
  int seen = first_ties;
  for (int base = begin; base < end; base += 32) {
    float x;
    const int id = base + lane;
    const float w = next(id, end, seen, x);
    total += w;
    weighted += w > 0 ? w * (x - most) * ask.inverse : 0;
    if (may_choose(id)) to_choose += w;
    (id == best ? of_best : of_others) = fmaxf(id == best ? of_best : of_others, w);
  }
  total = over_block<false, kWarps>(total);
  weighted = over_block<false, kWarps>(weighted);
  of_best = over_block<true, kWarps>(of_best);
  of_others = over_block<true, kWarps>(of_others);
  for (int step = 16; step > 0; step /= 2) to_choose += __shfl_xor_sync(~0u, to_choose, step);
  if (lane == 0) warp_total[warp] = to_choose;
  __syncthreads();
  if (warp > 0) return;

  float all = 0, before = 0;
  for (int i = 0; i < kWarps; ++i) all += warp_total[i];
  int token = best, part = 0;
  float x = 0, chosen = of_best;
  if (ask.draws && all > 0) {
    const float target = ask.uniform * all;
    while (part < kWarps - 1 && before + warp_total[part] <= target) before += warp_total[part++];
    while (part > 0 && warp_total[part] == 0) before -= warp_total[--part];  // rounding led behind the last
    seen = 0;
    for (int i = 0; ask.top_p < 1 && i < part; ++i) seen += warp_ties[i];
    const int last = min(LOGITS, (part + 1) * kEach);
    for (int base = part * kEach; base < last; base += 32) {
      const int id = base + lane;
      float w = next(id, last, seen, x);
      if (!may_choose(id)) w = 0;
      float sum = w;
      for (int step = 1; step < 32; step *= 2) {
        const float other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
      }
      // The last token that has a share, where rounding leads behind it.
      const u32 shares = __ballot_sync(~0u, w > 0), over = __ballot_sync(~0u, w > 0 && before + sum > target);
      const int here = over ? __ffs(over) - 1 : 31 - __clz(shares);
      if (shares) {
        token = base + here;
        chosen = __shfl_sync(~0u, w, here);
      }
      if (over) break;
      before += __shfl_sync(~0u, sum, 31);
    }
  }
  if (lane != 0 || token >= LOGITS) return;
  result.token = token;
  result.probability = expf(low(row[token]) - result.most) / result.total;
  result.confidence = result.probability;
  if (!ask.filters_confidence) return;
  result.confidence = chosen / total;
  result.margin = (of_best - of_others) / total;
  result.entropy = logf(total) - weighted / total;
}
