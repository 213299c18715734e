#include "model/attention.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>

namespace bicached {
namespace {

/// By the definition, a head at a time. q: [n, H, D]; k, v: [T, Hkv, D].
at::Tensor reference(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values) {
  const at::Tensor q = queries.to(at::kFloat), k = keys.to(at::kFloat), v = values.to(at::kFloat);
  at::Tensor out = at::empty(q.sizes(), q.options());
  for (int64_t head = 0; head < q.size(1); ++head) {
    const int64_t kv = head / (q.size(1) / k.size(1));
    const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(2)));
    const at::Tensor shares =
        at::softmax(q.select(1, head).matmul(k.select(1, kv).t()).mul(scale), 1);
    out.select(1, head).copy_(shares.matmul(v.select(1, kv)));
  }
  return out;
}

class Attention : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  at::Tensor random(at::IntArrayRef sizes) const { return at::randn(sizes).to(GetParam()); }
  /// Products in bfloat16 round the scores and the shares.
  bool is_close(const at::Tensor& out, const at::Tensor& expected) const {
    const double tolerance = GetParam() == at::kFloat ? 1e-5 : 0.05;
    return at::allclose(out.to(at::kFloat).view(expected.sizes()), expected, tolerance, tolerance);
  }
};

TEST_P(Attention, OfGroupsAnywhereInThePoolIsTheDefinition) {
  for (const int64_t kv_heads : {6, 2, 1}) {
    const int64_t heads = 6, size = 16;
    const at::Tensor keys = random({50, kv_heads, size});
    const at::Tensor values = random({50, kv_heads, size});
    // Queries as the forward has them: the leading heads of wider rows.
    const at::Tensor queries = random({12, heads + 2 * kv_heads, size}).narrow(1, 0, heads);
    AttentionIndex index;
    index.sequences = {{0, 5, 30, 20}, {5, 1, 2, 1}, {6, 6, 2, 17}};
    at::Tensor out = at::empty({12, heads * size}, queries.options());
    attend(queries, keys, values, index, AttentionKernel::kProducts, out);
    for (const AttentionSequence& group : index.sequences) {
      const at::Tensor expected = reference(queries.narrow(0, group.first_row, group.num_rows),
                                            keys.narrow(0, group.key_begin, group.num_keys),
                                            values.narrow(0, group.key_begin, group.num_keys));
      EXPECT_TRUE(is_close(out.narrow(0, group.first_row, group.num_rows), expected))
          << "rows from " << group.first_row << ", " << kv_heads << " KV heads";
    }
  }
}

/// Some rows and heads at a time, with a remainder.
TEST_P(Attention, MoreScoresThanAreTakenAtATimeAreTheDefinitionToo) {
  const int64_t size = 16, num_keys = 2300;
  for (const auto& [heads, kv_heads, rows] : {std::tuple{4, 4, 700}, {6, 2, 700}, {2, 1, 1}}) {
    const at::Tensor keys = random({num_keys, kv_heads, size});
    const at::Tensor values = random({num_keys, kv_heads, size});
    const at::Tensor queries = random({rows, heads, size});
    AttentionIndex index;
    index.sequences = {{0, rows, 0, num_keys}};
    at::Tensor out = at::empty({rows, heads * size}, queries.options());
    attend(queries, keys, values, index, AttentionKernel::kProducts, out);
    EXPECT_TRUE(is_close(out, reference(queries, keys, values))) << rows << " rows";
  }
}

/// Of a slab, only the sequence's own tokens are read: others may hold anything.
TEST_P(Attention, WhatLiesBesideASequenceDoesNotMatter) {
  const int64_t heads = 2, size = 16;
  const at::Tensor keys = random({50, heads, size}), values = random({50, heads, size});
  const at::Tensor queries = random({7, heads, size});
  AttentionIndex index;
  index.sequences = {{0, 7, 10, 19}};
  at::Tensor out = at::empty({7, heads * size}, queries.options());
  attend(queries, keys, values, index, AttentionKernel::kProducts, out);
  for (const at::Tensor& pool : {keys, values}) {
    pool.narrow(0, 0, 10).fill_(std::numeric_limits<float>::quiet_NaN());
    pool.narrow(0, 29, 21).fill_(std::numeric_limits<float>::quiet_NaN());
  }
  at::Tensor again = at::empty_like(out);
  attend(queries, keys, values, index, AttentionKernel::kProducts, again);
  EXPECT_TRUE(again.equal(out));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Attention, ::testing::Values(at::kFloat, at::kBFloat16));

}  // namespace
}  // namespace bicached
