#include "model/attention.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <gtest/gtest.h>

#include <cmath>

namespace bicached {
namespace {

/// By the definition, a head at a time. q: [n, H, D]; k, v: [T, Hkv, D].
at::Tensor reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
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

TEST(Attention, OfGroupsAnywhereInThePoolIsTheDefinition) {
  for (const int64_t kv_heads : {6, 2, 1}) {
    const int64_t heads = 6, size = 16;
    const at::Tensor keys = at::randn({50, kv_heads, size});
    const at::Tensor values = at::randn({50, kv_heads, size});
    // Queries as the forward has them: the leading heads of wider rows.
    const at::Tensor queries = at::randn({12, heads + 2 * kv_heads, size}).narrow(1, 0, heads);
    AttentionIndex index;
    index.sequences = {{0, 5, 30, 20}, {5, 1, 2, 1}, {6, 6, 2, 17}};
    at::Tensor out = at::empty({12, heads * size});
    attend(queries, keys, values, index, AttentionKernel::kProducts, out);
    for (const AttentionSequence& group : index.sequences) {
      const at::Tensor expected = reference(queries.narrow(0, group.first_row, group.num_rows),
                                            keys.narrow(0, group.key_begin, group.num_keys),
                                            values.narrow(0, group.key_begin, group.num_keys));
      EXPECT_TRUE(
          at::allclose(out.narrow(0, group.first_row, group.num_rows).view(expected.sizes()),
                       expected, 1e-5, 1e-5))
          << "rows from " << group.first_row << ", " << kv_heads << " KV heads";
    }
  }
}

TEST(Attention, MoreQueriesThanAreTakenAtATimeAreTheDefinitionToo) {
  const int64_t heads = 4, size = 16, rows = 700, num_keys = 800;  // 2.2 million scores
  const at::Tensor keys = at::randn({num_keys, heads, size});
  const at::Tensor values = at::randn({num_keys, heads, size});
  const at::Tensor queries = at::randn({rows, heads, size});
  AttentionIndex index;
  index.sequences = {{0, rows, 0, num_keys}};
  at::Tensor out = at::empty({rows, heads * size});
  attend(queries, keys, values, index, AttentionKernel::kProducts, out);
  const at::Tensor expected = reference(queries, keys, values);
  EXPECT_TRUE(at::allclose(out.view(expected.sizes()), expected, 1e-5, 1e-5));
}

}  // namespace
}  // namespace bicached
