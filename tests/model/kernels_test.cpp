// Every kernel of model/cuda against the same step in ATen, float32 where that is exacter. Skipped
// without a CUDA card.
#include <ATen/ops/allclose.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/logspace.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ostream>

#include "denoise/sampler.h"
#include "model/attention.h"
#include "model/cuda/forward_graphs.h"
#include "model/cuda/model_kernels.h"
#include "model/experts.h"
#include "model/float8.h"
#include "model/load_model.h"
#include "model/row_ops.h"

namespace bicached {
namespace {

struct Shape {
  int heads, kv_heads, head_size, rotary_size, num_logits;
};

// Names of the cases, in place of their bytes.
void PrintTo(const Shape& shape, std::ostream* out) {
  *out << shape.heads << " heads, " << shape.kv_heads << " KV heads of " << shape.head_size << ", "
       << shape.rotary_size << " rotated, " << shape.num_logits << " logits";
}

class Kernels : public ::testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    if (!testing::has_cuda()) GTEST_SKIP() << "no CUDA device";
    const Shape shape = GetParam();
    model.num_layers = 1;
    model.hidden_size = 264;
    model.num_heads = shape.heads;
    model.num_kv_heads = shape.kv_heads;
    model.head_size = shape.head_size;
    model.rotary_size = shape.rotary_size;
    model.mlp_size = 520;
    model.num_logits = shape.num_logits;
    model.vocab_size = shape.num_logits - 5;
    model.mask_token = shape.num_logits - 7;
    card = testing::last_card();
    options = at::TensorOptions().device(card).dtype(at::kBFloat16);
    at::manual_seed(1);
    kernels = ModelKernels::make(model, at::zeros({1}, options), /*fp8=*/false);
    ASSERT_TRUE(kernels) << "the kernels must compile on this card";
    stream = std::make_unique<CudaStream>(card);
    kernels->use_stream(stream->handle());
    use = std::make_unique<c10::StreamGuard>(stream->for_libtorch());
  }

  at::Tensor random(at::IntArrayRef sizes) const { return at::randn(sizes, options); }
  at::Tensor numbers(const std::vector<int64_t>& values) const {
    return at::tensor(values, at::dtype(at::kLong)).to(card);
  }
  static void expect_near(const at::Tensor& a, const at::Tensor& b, double relative) {
    EXPECT_TRUE(at::allclose(a.to(at::kFloat), b.to(at::kFloat), relative, relative))
        << "greatest difference "
        << a.to(at::kFloat).sub(b.to(at::kFloat)).abs().max().item<float>();
  }

  const c10::InferenceMode mode;
  at::Device card = at::kCPU;
  ModelConfig model;
  at::TensorOptions options;
  std::unique_ptr<ModelKernels> kernels;
  std::unique_ptr<CudaStream> stream;
  std::unique_ptr<c10::StreamGuard> use;
};

/// One rounding to bfloat16.
constexpr double kRounding = 1.0 / 128;

TEST_P(Kernels, EmbedTakesRows) {
  const at::Tensor table = random({50, model.hidden_size});
  const at::Tensor tokens = numbers({3, 49, 0, 3});
  at::Tensor out = at::empty({4, model.hidden_size}, options);
  kernels->embed(table, tokens, out);
  EXPECT_TRUE(out.equal(at::index_select(table, 0, tokens)));
}

TEST_P(Kernels, NormOfAllRowsAndOfSome) {
  const at::Tensor x = random({37, model.hidden_size}), weight = random({model.hidden_size});
  at::Tensor expected = at::empty_like(x), out = at::empty_like(x);
  rms_norm(x, weight, model.norm_eps, expected);
  kernels->rms_norm(x, weight, {}, out);
  expect_near(out, expected, kRounding);
  const at::Tensor rows = numbers({36, 2, 2});
  at::Tensor some = at::empty({3, model.hidden_size}, options);
  kernels->rms_norm(x, weight, rows, some);
  EXPECT_TRUE(some.equal(out.index_select(0, rows)));
}

TEST_P(Kernels, NormOfHeads) {
  const HeadShape heads{model.num_heads, model.num_kv_heads, model.head_size};
  at::Tensor expected = random({13, heads.qkv_size()}), out = expected.clone();
  const at::Tensor query = random({model.head_size}), key = random({model.head_size});
  const at::Tensor rows = expected.view({13, -1, model.head_size});
  norm_heads(rows.narrow(1, 0, heads.num_heads), query, model.norm_eps);
  norm_heads(rows.narrow(1, heads.num_heads, heads.num_kv_heads), key, model.norm_eps);
  kernels->norm_heads(out, query, key);
  expect_near(out, expected, kRounding);
}

TEST_P(Kernels, RotationStoresKeysAndValuesButNotOfPadding) {
  const HeadShape heads{model.num_heads, model.num_kv_heads, model.head_size};
  const RopeTable rope = make_rope_table(100, model.rotary_size, 10000, card);
  const at::Tensor first = random({5, heads.qkv_size()}), bias = random({heads.qkv_size()});
  const at::Tensor pool = random({60, model.num_kv_heads, model.head_size});
  for (const bool has_bias : {false, true}) {
    at::Tensor expected = has_bias ? first.add(bias) : first.clone(), out = first.clone();
    at::Tensor keys = pool.clone(), values = pool.clone(), k = pool.clone(), v = pool.clone();
    const RowIndex index{numbers({99, 0, 7, 8, 5}), numbers({59, 3, 4, 5, 9})};
    rotate_and_store(expected, heads, rope, index, {keys, values});
    kernels->rotate_and_store(out, has_bias ? bias : at::Tensor(), rope, index, k, v);
    const int64_t rotated = (heads.num_heads + heads.num_kv_heads) * heads.head_size;
    expect_near(out.narrow(1, 0, rotated), expected.narrow(1, 0, rotated), kRounding);
    expect_near(k, keys, kRounding);
    expect_near(v, values, kRounding);
  }
  at::Tensor out = first.clone(), k = pool.clone(), v = pool.clone();
  const RowIndex padding{numbers({0, 0, 0, 0, 0}), numbers({-1, -1, -1, -1, -1})};
  kernels->rotate_and_store(out, bias, rope, padding, k, v);
  EXPECT_TRUE(k.equal(pool));
  EXPECT_TRUE(v.equal(pool));
}

TEST_P(Kernels, GateTimesUp) {
  const at::Tensor gate_up = random({9, 2 * model.mlp_size}).mul(4);
  at::Tensor expected = at::empty({9, model.mlp_size}, options), out = at::empty_like(expected);
  silu_times_up(gate_up, expected);
  kernels->silu_times_up(gate_up, out, {});
  expect_near(out, expected, 2 * kRounding);
}

TEST_P(Kernels, Float8KeepsThreeBits) {
  if (CudaRuntime::get().compute_capability(card.index()) < CudaRuntime::kFloat8Capability) {
    GTEST_SKIP() << "no float8 on this card";
  }
  const auto values = [](const at::Tensor& out, const at::Tensor& scales) {
    return out.to(at::kFloat).mul(scales);
  };
  const auto float8 = options.dtype(at::kFloat8_e4m3fn);
  at::Tensor scales = at::empty({37, 1}, options.dtype(at::kFloat));
  at::Tensor x = random({37, model.hidden_size});
  const at::Tensor add = random({37, model.hidden_size}), weight = random({model.hidden_size});
  at::Tensor exact = at::empty_like(x), out = at::empty(x.sizes(), float8);
  const at::Tensor sum = x.add(add);
  rms_norm(sum, weight, model.norm_eps, exact);
  kernels->add_and_norm(x, add, weight, out, scales);
  EXPECT_TRUE(x.equal(sum));
  testing::expect_rounded(values(out, scales), exact.to(at::kFloat));
  kernels->quantise(x, out, scales);
  testing::expect_rounded(values(out, scales), x.to(at::kFloat));

  const at::Tensor gate_up = random({37, 2 * model.mlp_size});
  at::Tensor product = at::empty({37, model.mlp_size}, options);
  kernels->silu_times_up(gate_up, product, {});
  at::Tensor small = at::empty(product.sizes(), float8);
  kernels->silu_times_up(gate_up, small, scales);
  testing::expect_rounded(values(small, scales), product.to(at::kFloat));

  const Linear linear = quantised(weight.view({1, -1}).to(at::kFloat));
  testing::expect_rounded(testing::widened(linear), weight.view({1, -1}).to(at::kFloat));
}

TEST_P(Kernels, AttentionIsThatOfTheDefinition) {
  const int64_t heads = model.num_heads, kv_heads = model.num_kv_heads, size = model.head_size;
  const at::Tensor keys = random({3000, kv_heads, size}), values = random({3000, kv_heads, size});
  // Few sequences have their keys split, many don't.
  for (const int copies : {1, 40}) {
    std::vector<AttentionSequence> sequences;
    int64_t rows = 0;
    for (int i = 0; i < copies; ++i) {
      for (const auto& [num, begin, length] : {std::tuple<int64_t, int64_t, int64_t>{32, 5, 1056},
                                               {1, 2000, 1},
                                               {64, 1200, 700},
                                               {17, 0, 33},
                                               {40, 100, 2900}}) {
        sequences.push_back({rows, num, begin, length});
        rows += num;
      }
    }
    const at::Tensor qkv = random({rows, heads + 2 * kv_heads, size});
    const at::Tensor queries = qkv.narrow(1, 0, heads);
    std::vector<int32_t> tiles = attention_tiles(sequences);
    tiles.resize(tiles.size() + 12, 0);  // padding
    const at::Tensor on_device = at::tensor(tiles, at::dtype(at::kInt)).to(card).view({-1, 4});
    at::Tensor out = at::full({rows, heads * size}, 77.0, options), again = at::empty_like(out);
    kernels->attend(queries, keys, values, on_device, out);
    kernels->attend(queries, keys, values, on_device, again);
    EXPECT_TRUE(out.equal(again)) << "the same each time";
    AttentionIndex index;
    index.sequences = sequences;
    at::Tensor expected = at::empty({rows, heads * size}, options.dtype(at::kFloat));
    attend(queries.to(at::kFloat), keys.to(at::kFloat), values.to(at::kFloat), index,
           AttentionKernel::kProducts, expected);
    expect_near(out, expected, 0.01);
  }
}

TEST_P(Kernels, StatisticsAreThoseOfTheSampler) {
  const TokenRules rules{model.vocab_size, model.mask_token, false};
  at::Tensor logits = random({6, model.num_logits}).mul(5);
  logits.select(0, 1).fill_(0.5);                               // ties: the lowest id
  logits.select(0, 2).select(0, model.mask_token).fill_(60.0);  // the mask token leads
  logits.select(0, 3).select(0, model.num_logits - 1).fill_(60.0);
  logits.select(0, 4).narrow(0, 4, 20).fill_(-INFINITY);
  const SamplingParams greedy;
  LogitRow row;
  row.sampling = &greedy;
  const std::vector<LogitRow> rows(6, row);
  const auto expected = read_rows({sample_rows(logits, rows, rules)}, rows);
  const auto results = read_rows({sample_rows(logits, rows, rules, nullptr, kernels.get())}, rows);
  ASSERT_EQ(results.size(), 6u);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(results[i].token, expected[i].token) << i;
    EXPECT_NEAR(results[i].probability, expected[i].probability, 2e-5) << i;
    EXPECT_NEAR(results[i].margin, expected[i].margin, 2e-5) << i;
    EXPECT_NEAR(results[i].entropy, expected[i].entropy, 1e-4) << i;
  }
  EXPECT_EQ(results[1].token, 0);
}

/// Each row with parameters of its own, some with what kernels leave to ATen.
TEST_P(Kernels, DrawsAreThoseOfTheSampler) {
  std::vector<SamplingParams> asked;
  for (const float temperature : {0.0f, 0.3f, 1.0f, 2.0f}) {
    for (const float top_p : {1.0f, 0.9f, 0.3f, 0.0f}) {
      for (const int top_k : {0, 1, 7}) {
        for (const float min_p : {0.0f, 0.2f}) {
          SamplingParams sampling;
          sampling.temperature = temperature;
          sampling.top_p = top_p;
          sampling.top_k = top_k;
          sampling.min_p = min_p;
          asked.push_back(sampling);
        }
      }
    }
  }
  asked[5].num_top_logprobs = 2;
  asked[77].logit_bias = {{3, 4.0f}};
  const auto count = static_cast<int64_t>(asked.size());
  const at::Tensor logits = random({count, model.num_logits}).mul(2);
  logits.select(0, 30).fill_(1);                                 // only ties
  logits.select(0, 60).select(0, model.mask_token).fill_(60.0);  // the mask token has it all
  logits.select(0, 70).narrow(0, 0, model.num_logits - 40).fill_(-INFINITY);
  for (const bool filters_confidence : {false, true}) {
    const TokenRules rules{model.vocab_size, model.mask_token, filters_confidence};
    const auto sampled = [&](double shift, const ModelKernels* by) {
      std::vector<LogitRow> rows(asked.size());
      for (size_t i = 0; i < rows.size(); ++i) {
        rows[i].sampling = &asked[i];
        rows[i].uniform =
            std::clamp(static_cast<double>(i * 37 % 101) / 101 + shift, 0.0, 0.9999999);
      }
      return read_rows({sample_rows(logits, rows, rules, nullptr, by)}, rows);
    };
    const auto results = sampled(0, kernels.get()), expected = sampled(0, nullptr);
    const auto below = sampled(-1e-5, nullptr), above = sampled(1e-5, nullptr);  // of rounding
    int same = 0;
    for (size_t i = 0; i < asked.size(); ++i) {
      SCOPED_TRACE(std::to_string(i) + (filters_confidence ? " filters confidence" : ""));
      EXPECT_TRUE(results[i].token == expected[i].token || results[i].token == below[i].token ||
                  results[i].token == above[i].token)
          << results[i].token << ", not " << expected[i].token;
      EXPECT_EQ(results[i].top.size(), expected[i].top.size());
      if (results[i].token != expected[i].token) continue;
      ++same;
      EXPECT_NEAR(results[i].probability, expected[i].probability, 1e-4);
      EXPECT_NEAR(results[i].confidence, expected[i].confidence, 1e-4);
      EXPECT_NEAR(results[i].margin, expected[i].margin, 1e-4);
      EXPECT_NEAR(results[i].entropy, expected[i].entropy, 1e-3);
    }
    EXPECT_GE(same, 90) << "of 96";
  }
}

TEST_P(Kernels, AGraphRunsTheSame) {
  const at::Tensor gate_up = random({32, 2 * model.mlp_size});
  at::Tensor out = at::empty({32, model.mlp_size}, options);
  const at::Tensor product = at::empty({32, 64}, options), weight = random({model.mlp_size, 64});
  at::Tensor result = product;
  ForwardGraphs graphs(*stream);
  const auto work = [&] {
    kernels->silu_times_up(gate_up, out, {});
    at::mm_out(result, out, weight);
  };
  graphs.run({32, 1}, work);
  const at::Tensor first = result.clone();
  graphs.run({32, 1}, work);  // captured
  EXPECT_TRUE(result.equal(first));
  gate_up.mul_(-1);
  graphs.run({32, 1}, work);
  const at::Tensor replayed = result.clone();
  work();
  EXPECT_TRUE(result.equal(replayed)) << "it reads what is there now";
}

INSTANTIATE_TEST_SUITE_P(Shapes, Kernels,
                         ::testing::Values(Shape{4, 4, 32, 32, 1000}, Shape{8, 2, 64, 64, 1001},
                                           Shape{32, 32, 128, 128, 4096},
                                           Shape{7, 1, 128, 128, 264}, Shape{16, 4, 128, 64, 264},
                                           Shape{3, 3, 64, 16, 264}));

struct ExpertKind {
  ExpertsConfig config;
  bool fp8 = false;
};

void PrintTo(const ExpertKind& kind, std::ostream* out) {
  *out << kind.config.num_chosen << " of " << kind.config.num_experts << " experts of "
       << kind.config.size << (kind.config.shared_size > 0 ? ", a shared one" : "")
       << (kind.fp8 ? ", float8" : "");
}

/// Experts by our kernels against experts.h in float32.
class ExpertKernels : public ::testing::TestWithParam<ExpertKind> {
 protected:
  void SetUp() override {
    if (!testing::has_cuda()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_P(ExpertKernels, AddWhatTheDefinitionAdds) {
  const c10::InferenceMode mode;
  ModelConfig model;
  model.num_layers = 1;
  const bool fp8 = GetParam().fp8;
  model.hidden_size = fp8 ? 320 : 288;
  model.num_heads = model.num_kv_heads = 2;
  model.head_size = model.rotary_size = 32;
  model.vocab_size = model.num_logits = 264;
  model.experts = GetParam().config;
  const int64_t count = model.experts.num_experts, width = model.experts.size;
  const c10::Device card = testing::last_card();
  const auto options = at::TensorOptions().device(card).dtype(at::kBFloat16);
  at::manual_seed(1);
  const auto kernels = ModelKernels::make(model, at::zeros({1}, options), fp8);
  ASSERT_TRUE(kernels);
  ASSERT_GE(kernels->max_expert_rows(), 100);
  const CudaStream stream(card);
  kernels->use_stream(stream.handle());
  const c10::StreamGuard use(stream.for_libtorch());

  const auto random = [&](at::IntArrayRef sizes, double size) {
    return at::randn(sizes, options).mul(size);
  };
  const int64_t all_experts = count + model.experts.num_shared();
  const auto matrices = [&](int64_t outputs, int64_t depth) {  // that keep values about as large
    const double size = 1 / std::sqrt(static_cast<double>(depth));
    const at::Tensor weights = random({all_experts * outputs, depth}, size);
    Linear made{weights, {}, {}};
    if (fp8) {
      const at::Tensor sizes = at::logspace(-2, 0, all_experts * outputs, 10, options);
      made = quantised(weights.mul(sizes.unsqueeze(1)));
      made.scale = made.scale.view({all_experts, outputs});
    }
    made.weight = made.weight.view({all_experts, outputs, depth});
    return made;
  };
  Experts experts{random({count, model.hidden_size}, 0.2).to(at::kFloat),
                  {},
                  matrices(2 * width, model.hidden_size),
                  matrices(model.hidden_size, width)};
  if (model.experts.router_bias != RouterBias::kNone) {
    experts.router_bias = random({count}, 0.3).to(at::kFloat);
  }
  const Experts wide{experts.router,
                     experts.router_bias,
                     {testing::widened(experts.gate_up), {}, {}},
                     {testing::widened(experts.down), {}, {}}};

  const at::Tensor x = random({100, model.hidden_size}, 1), before = random(x.sizes(), 1);
  at::Tensor expected = before.to(at::kFloat);
  add_experts(x.to(at::kFloat), wide, model.experts, expected);
  at::Tensor all = before.clone();
  kernels->add_experts(x, experts, {}, all);
  EXPECT_TRUE(at::allclose(all.to(at::kFloat), expected, 0.03, 0.03))
      << "greatest difference " << all.sub(expected).abs().max().item<float>();

  for (const int64_t rows : {1, 9, 40}) {
    at::Tensor some = before.narrow(0, 3, rows).clone();
    kernels->add_experts(x.narrow(0, 3, rows), experts, {}, some);
    EXPECT_TRUE(some.equal(all.narrow(0, 3, rows))) << "a row's result is its own";
  }
  std::vector<int64_t> slots(100, 5);
  slots[0] = slots[50] = -1;
  at::Tensor with_padding = before.clone();
  kernels->add_experts(x, experts, at::tensor(slots, at::dtype(at::kLong)).to(card), with_padding);
  for (int64_t row = 0; row < 100; ++row) {
    const at::Tensor& same = row == 0 || row == 50 ? before : all;
    EXPECT_TRUE(with_padding.select(0, row).equal(same.select(0, row))) << row;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, ExpertKernels,
    ::testing::Values(
        ExpertKind{{.num_experts = 64, .num_chosen = 8, .size = 96}},
        ExpertKind{{.num_experts = 64, .num_chosen = 8, .size = 128}, /*fp8=*/true},
        ExpertKind{{.num_experts = 128, .num_chosen = 8, .size = 64, .normalized = true}},
        ExpertKind{{.num_experts = 256,
                    .num_chosen = 8,
                    .size = 32,
                    .shared_size = 32,
                    .sigmoid = true,
                    .router_bias = RouterBias::kChoice,
                    .normalized = true,
                    .weight_scale = 2.5,
                    .num_groups = 8,
                    .num_chosen_groups = 4}},
        ExpertKind{{.num_experts = 32, .num_chosen = 4, .size = 64, .shared_size = 100}, true},
        ExpertKind{{.num_experts = 5,
                    .num_chosen = 1,
                    .size = 160,
                    .shared_size = 320,
                    .sigmoid = true,
                    .router_bias = RouterBias::kChoiceAndWeight}}));

TEST(PaddedSize, IsNearAndSeldomAnother) {
  int64_t last = 0, different = 0;
  for (int64_t rows = 1; rows <= 4096; ++rows) {
    const PaddedSize size = padded_size(rows, (rows + 31) / 32);
    EXPECT_GE(size.num_rows, rows);
    EXPECT_LE(size.num_rows, rows + std::max<int64_t>(31, rows / 16));
    different += size.num_rows == last ? 0 : 1;
    last = size.num_rows;
  }
  EXPECT_LE(different, 64);
}

}  // namespace
}  // namespace bicached
