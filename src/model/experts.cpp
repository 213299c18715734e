#include "model/experts.h"

#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "model/row_ops.h"

namespace bicached {
namespace {

/// Scores of experts outside the best groups as low as can be.
at::Tensor limit_to_groups(const at::Tensor& scores, const ExpertsConfig& config) {
  const int64_t rows = scores.size(0), groups = config.num_groups;
  const at::Tensor grouped = scores.view({rows, groups, -1});
  const int64_t best = std::min<int64_t>(2, grouped.size(2));
  const at::Tensor of_group = std::get<0>(grouped.topk(best, -1)).sum(-1);
  const at::Tensor chosen = std::get<1>(of_group.topk(config.num_chosen_groups, -1));
  const at::Tensor is_out = at::zeros({rows, groups}, scores.options().dtype(at::kBool))
                                .fill_(true)
                                .scatter_(1, chosen, false);
  return grouped.masked_fill(is_out.unsqueeze(-1), -std::numeric_limits<float>::infinity())
      .view({rows, -1});
}

/// x [M, in] in pieces, one an expert, times that expert's [out, in] transposed. `ends` [E]: where
/// the pieces end.
at::Tensor multiply(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& ends) {
  // The grouped kernels want rows of whole 16 bytes.
  if (x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.size(1) % 8 == 0 &&
      weights.size(1) % 8 == 0) {
    return at::_grouped_mm(x, weights.transpose(1, 2), ends);
  }
  at::Tensor out = at::empty({x.size(0), weights.size(1)}, x.options());
  const at::Tensor on_host = ends.cpu();
  const int32_t* end = on_host.const_data_ptr<int32_t>();
  int64_t begin = 0;
  for (int64_t expert = 0; expert < weights.size(0); ++expert) {
    const int64_t count = end[expert] - begin;
    if (count == 0) continue;
    at::Tensor piece = out.narrow(0, begin, count);
    at::mm_out(piece, x.narrow(0, begin, count), weights.select(0, expert).t());
    begin += count;
  }
  return out;
}

}  // namespace

Routing route(const at::Tensor& x, const Experts& experts, const ExpertsConfig& config) {
  const at::Tensor logits = at::mm(x.to(at::kFloat), experts.router.t());
  at::Tensor scores = config.sigmoid ? at::sigmoid(logits) : at::softmax(logits, -1);
  at::Tensor for_choice = scores;
  if (experts.router_bias.defined()) for_choice = scores.add(experts.router_bias);
  if (config.router_bias == RouterBias::kChoiceAndWeight) scores = for_choice;
  if (config.num_chosen_groups < config.num_groups) {
    for_choice = limit_to_groups(for_choice, config);
  }
  Routing routing;
  routing.experts = std::get<1>(for_choice.topk(config.num_chosen, -1));
  routing.weights = scores.gather(1, routing.experts);
  if (config.normalized) {
    constexpr double kTiny = 1e-20;  // of LLaDA2's code: all scores may be 0
    routing.weights = routing.weights.div(routing.weights.sum(-1, /*keepdim=*/true).add(kTiny));
  }
  routing.weights = routing.weights.mul(config.weight_scale);
  return routing;
}

void add_experts(const at::Tensor& x, const Experts& experts, const ExpertsConfig& config,
                 at::Tensor& out) {
  const int64_t rows = x.size(0), taken = config.num_taken(), shared = config.num_shared();
  if (rows == 0) return;
  const Routing routing = route(x, experts, config);
  const at::Tensor all_experts =
      at::cat({at::arange(shared, routing.experts.options()).expand({rows, shared}),
               routing.experts.add(shared)},
              1);
  const at::Tensor weights =
      at::cat({at::ones({rows, shared}, routing.weights.options()), routing.weights}, 1);
  const auto [by_expert, order] = all_experts.view({-1}).sort(/*stable=*/true, 0, false);
  // Nothing here makes a device wait for the host, as counting would.
  const at::Tensor numbers = at::arange(shared + config.num_experts, by_expert.options());
  const at::Tensor ends = at::searchsorted(by_expert, numbers, /*out_int32=*/true, /*right=*/true);
  const at::Tensor sorted = x.index_select(0, order.floor_divide(taken));
  const at::Tensor gate_up = multiply(sorted, experts.gate_up.weight, ends);
  at::Tensor activated = at::empty({gate_up.size(0), config.size}, gate_up.options());
  silu_times_up(gate_up, activated);
  const at::Tensor results = multiply(activated, experts.down.weight, ends);
  // Back into the order of rows, so that a row's sum has one order whatever others chose.
  at::Tensor by_row = at::empty_like(results);
  by_row.index_copy_(0, order, results);
  const at::Tensor weighted =
      by_row.view({rows, taken, -1}).to(at::kFloat).mul(weights.unsqueeze(-1)).sum(1);
  out.add_(weighted);  // in float32, rounded once
}

}  // namespace bicached
