#include "model/packed_forward.h"

#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "bicached/error.h"
#include "model/experts.h"

namespace bicached {
namespace {

/// A host vector as a tensor on the device; on the CPU without a copy, so the vector must live on.
at::Tensor to_device(const std::vector<int64_t>& values, const at::Device& device) {
  const at::Tensor host =
      at::from_blob(const_cast<int64_t*>(values.data()), {static_cast<int64_t>(values.size())},
                    at::dtype(at::kLong));
  return device.is_cpu() ? host : host.to(device);
}

/// Graphs hold forwards up to this size; a larger one keeps the card busy for longer than the host
/// takes to launch it.
constexpr int64_t kMaxGraphRows = 4096;
/// Rows of a product on a processor are filled up in such steps at least: oneDNN compiles a kernel
/// for each number of them. As its matrices are read anyway, few rows cost as much as eight.
constexpr int64_t kCpuRowStep = 8;

}  // namespace

PackedForward::PackedForward(const ModelConfig& config, const ModelWeights& weights, KvPool& pool,
                             bool cuda_graphs)
    : config_(config),
      weights_(weights),
      pool_(pool),
      kernel_(choose_attention(weights.embedding.options(), config.head_size)),
      kernels_(ModelKernels::make(config, weights.embedding, is_quantised())),
      uploader_(weights.embedding.device(), kernels_.get()) {
  heads_ = {config.num_heads, config.num_kv_heads, config.head_size};
  // No canvas is longer than the pool, and a table of a claimed million positions would be waste.
  const int64_t positions = std::min<int64_t>(config.max_length, pool.slabs().capacity_tokens());
  rope_ =
      make_rope_table(positions, config.rotary_size, config.rope_theta, weights.embedding.device());
  const int widths = config.hidden_size | config.mlp_size;
  const bool has_kernels =
      kernels_ && (config.sparse_layers.empty() || kernels_->max_expert_rows() > 0);
  if (is_quantised() && (!has_kernels || widths % 16 != 0)) {
    throw Error(ErrorCode::kInvalidSettings,
                "weights is fp8, which needs head sizes of 32, 64 or 128, widths that are "
                "multiples of 16 (with experts of 64, and no more than 512 experts), and NVRTC; "
                "see the log",
                "weights");
  }
  if (!kernels_) return;
  stream_ = std::make_unique<CudaStream>(weights.embedding.device());
  kernels_->use_stream(stream_->handle());
  if (cuda_graphs) graphs_ = std::make_unique<ForwardGraphs>(*stream_);
}

at::Tensor PackedForward::enter_segment(const at::Tensor& x, const ForwardPlan& plan,
                                        size_t segment, const Forward& forward,
                                        const BoundaryStates& states) const {
  const LayerSegment& now = plan.segments[segment];
  std::vector<at::Tensor> pieces;
  int64_t num_filling = now.num_rows;
  for (const PlannedGroup& planned : now.groups) {
    const RowGroup& group = forward.groups[static_cast<size_t>(planned.group)];
    num_filling -= planned.num_rows;
    if (group.enter_layer < now.first_layer) {
      const auto& before = plan.segments[segment - 1].groups;
      const auto it = std::ranges::find(before, planned.group, &PlannedGroup::group);
      pieces.push_back(x.narrow(0, it->first_row, it->num_rows));
      continue;
    }
    const at::Tensor hidden = states.states(group.enter_from, now.first_layer);
    if (!hidden.defined() || group.row_at(group.num_rows() - 1) >= hidden.size(0)) {
      throw Error(ErrorCode::kInternal, "entry " + std::to_string(group.enter_from) +
                                            " keeps no hidden state of row " +
                                            std::to_string(group.row_at(group.num_rows() - 1)) +
                                            " before layer " + std::to_string(now.first_layer));
    }
    if (group.rows.empty()) {
      pieces.push_back(hidden.narrow(0, group.begin, group.num_rows()));
    } else {
      const std::vector<int64_t> rows(group.rows.begin(), group.rows.end());
      pieces.push_back(hidden.index_select(0, to_device(rows, weights_.embedding.device())));
    }
  }
  pieces.push_back(at::zeros({num_filling, config_.hidden_size}, weights_.embedding.options()));
  return at::cat(pieces, 0);
}

void PackedForward::capture(const at::Tensor& x, int layer, const LayerSegment& segment,
                            const Forward& forward, const BoundaryStates& states) const {
  for (const PlannedGroup& planned : segment.groups) {
    const RowGroup& group = forward.groups[static_cast<size_t>(planned.group)];
    if (group.capture_to == kNoId || (layer == segment.end_layer && group.leave_layer != layer)) {
      continue;
    }
    at::Tensor hidden = states.states(group.capture_to, layer);
    if (!hidden.defined()) continue;
    std::vector<int64_t> rows;  // those that are positions of the entry: the group's first ones
    for (int i = 0; i < group.num_rows() && group.row_at(i) < hidden.size(0); ++i) {
      rows.push_back(group.row_at(i));
    }
    if (rows.empty()) continue;
    const auto count = static_cast<int64_t>(rows.size());
    const at::Tensor captured = x.narrow(0, planned.first_row, count);
    if (group.rows.empty()) {
      hidden.narrow(0, group.begin, count).copy_(captured);
    } else {
      hidden.index_copy_(0, to_device(rows, weights_.embedding.device()), captured);
    }
  }
}

int64_t PackedForward::bytes_per_row(const ModelConfig& config, at::ScalarType dtype, bool fp8) {
  const int64_t query = int64_t{config.num_heads} * config.head_size;
  const int64_t kv = int64_t{config.num_kv_heads} * config.head_size, d = config.hidden_size;
  const int64_t mlp_size = config.mlp_size;
  // As in `reserve`; besides, attention that is no kernel of our own has its result apart, and
  // where rows enter or leave there are two more of the hidden state.
  const int64_t buffers = 2 * d + (query + 2 * kv) + query + 3 * mlp_size + (fp8 ? d : 0);
  const int64_t passing = query + 2 * d;
  const int64_t quantised = fp8 ? std::max({d, query, mlp_size}) + int64_t{sizeof(float)} : 0;
  return (buffers + passing) * static_cast<int64_t>(c10::elementSize(dtype)) + quantised;
}

void PackedForward::reserve(int64_t num_rows) {
  if (num_rows <= scratch_.num_rows) return;
  scratch_ = {};  // gives the old ones back first
  const int64_t mlp_size = config_.mlp_size;
  const auto rows = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(num_rows)));
  const auto buffer = [&](int64_t columns) {
    return at::empty({rows, columns}, weights_.embedding.options());
  };
  scratch_ = {rows,
              buffer(config_.hidden_size),
              buffer(config_.hidden_size),
              buffer(heads_.qkv_size()),
              buffer(heads_.num_heads * heads_.head_size),
              buffer(2 * mlp_size),
              buffer(mlp_size),
              {},
              {},
              {}};
  if (is_quantised()) {
    const int64_t widest =
        std::max<int64_t>({config_.hidden_size, heads_.num_heads * heads_.head_size, mlp_size});
    const auto options = weights_.embedding.options();
    scratch_.quantised = at::empty({rows * widest}, options.dtype(at::kFloat8_e4m3fn));
    scratch_.scales = at::empty({rows, 1}, options.dtype(at::kFloat));
    scratch_.added = buffer(config_.hidden_size);
  }
  if (graphs_) graphs_->clear();
}

at::Tensor PackedForward::embed(const at::Tensor& tokens) {
  at::Tensor x = scratch_.x.narrow(0, 0, tokens.size(0));
  if (kernels_) {
    kernels_->embed(weights_.embedding, tokens, x);
  } else {
    at::index_select_out(x, weights_.embedding, 0, tokens);
  }
  return x;
}

/// Room for the input of `next`, as wide as `buffer`, which is that room in the compute dtype.
PackedForward::Activation PackedForward::room(const at::Tensor& buffer, int64_t rows,
                                              const Linear& next) const {
  if (!next.is_quantised()) return {buffer.narrow(0, 0, rows), {}};
  const int64_t columns = buffer.size(1);
  return {scratch_.quantised.narrow(0, 0, rows * columns).view({rows, columns}),
          scratch_.scales.narrow(0, 0, rows)};
}

/// Of all rows, as `next` takes it.
PackedForward::Activation PackedForward::norm(at::Tensor& x, const at::Tensor& weight,
                                              const Linear& next) {
  Activation out = room(scratch_.normed, x.size(0), next);
  if (kernels_) {
    kernels_->add_and_norm(x, std::exchange(pending_, {}), weight, out.values, out.scales);
  } else {
    rms_norm(x, weight, config_.norm_eps, out.values);
  }
  return out;
}

/// out = input W^T; the bias of quantised weights, and with kernels, is left to who stores K and V.
void PackedForward::multiply(const Linear& linear, const Activation& input, at::Tensor& out) const {
  if (linear.is_quantised()) {
    at::_scaled_mm_out(out, input.values, linear.weight.t(), input.scales, linear.scale,
                       /*bias=*/std::nullopt, /*scale_result=*/std::nullopt, out.scalar_type(),
                       /*use_fast_accum=*/true);
  } else if (linear.bias.defined() && !kernels_) {
    at::addmm_out(out, linear.bias, input.values, linear.weight.t());
  } else {
    at::mm_out(out, input.values, linear.weight.t());
  }
}

/// x += input W^T, now or (float8 products don't add) with the next norm.
void PackedForward::add_product(const Linear& linear, const Activation& input, at::Tensor& x) {
  if (!linear.is_quantised()) {
    x.addmm_(input.values, linear.weight.t());
    return;
  }
  at::Tensor added = scratch_.added.narrow(0, 0, x.size(0));
  multiply(linear, input, added);
  pending_ = added;
}

void PackedForward::settle(at::Tensor& x) {
  if (pending_.defined()) x.add_(std::exchange(pending_, {}));
}

void PackedForward::attend_layer(int layer, at::Tensor& x, const SegmentIndex& segment,
                                 const ForwardIndex& index, bool only_wanted) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const at::Tensor pool_keys = pool_.keys(layer), pool_values = pool_.values(layer);
  const int64_t rows = x.size(0);
  at::Tensor qkv = scratch_.qkv.narrow(0, 0, rows);
  multiply(w.qkv, norm(x, w.attention_norm, w.qkv), qkv);
  const at::Tensor heads = qkv.view({rows, -1, heads_.head_size});
  const at::Tensor keys = heads.narrow(1, heads_.num_heads, heads_.num_kv_heads);
  at::Tensor queries = heads.narrow(1, 0, heads_.num_heads);
  if (w.query_norm.defined() && kernels_) {
    kernels_->norm_heads(qkv, w.query_norm, w.key_norm);
  } else if (w.query_norm.defined()) {
    norm_heads(queries, w.query_norm, config_.norm_eps);
    norm_heads(keys, w.key_norm, config_.norm_eps);
  }
  if (config_.clip_qkv > 0) qkv.clamp_(-config_.clip_qkv, config_.clip_qkv);
  observe("q_pre_rope", layer, queries);
  observe("k_pre_rope", layer, keys);
  observe("v", layer, heads.narrow(1, heads_.num_heads + heads_.num_kv_heads, heads_.num_kv_heads));
  if (kernels_) {
    kernels_->rotate_and_store(qkv, w.qkv.bias, rope_, segment.rows, pool_keys, pool_values);
  } else {
    rotate_and_store(qkv, heads_, rope_, segment.rows, {pool_keys, pool_values});
  }
  observe("q_rope", layer, queries);
  observe("k_rope", layer, keys);
  if (only_wanted) {
    x = x.index_select(0, index.wanted_rows);
    queries = queries.index_select(0, index.wanted_rows);
    if (x.size(0) == 0) return;
  }
  const AttentionIndex& sequences = only_wanted ? index.wanted_attention : segment.attention;
  at::Tensor attention = scratch_.attention.narrow(0, 0, x.size(0));
  if (sequences.tiles.defined()) {
    kernels_->attend(queries, pool_keys, pool_values, sequences.tiles, attention);
  } else {
    attend(queries, pool_keys, pool_values, sequences, kernel_, attention);
  }
  observe("attention", layer, attention);
  Activation attended = room(scratch_.attention, x.size(0), w.attention_out);
  if (attended.scales.defined()) kernels_->quantise(attention, attended.values, attended.scales);
  add_product(w.attention_out, attended, x);
}

void PackedForward::mlp_layer(int layer, at::Tensor& x, const at::Tensor& slots) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  if (w.mlp) {
    add_mlp(*w.mlp, norm(x, w.mlp_norm, w.mlp->gate_up), x);
  } else {
    const at::Tensor normed = norm(x, w.mlp_norm, {}).values;
    if (observer_) {
      const Routing routing = route(normed, *w.experts, config_.experts);
      at::Tensor all =
          at::zeros({x.size(0), config_.experts.num_experts}, routing.weights.options());
      observe("router_weights", layer, all.scatter_(1, routing.experts, routing.weights));
    }
    add_experts(*w.experts, normed, slots, x);
  }
  observe("hidden", layer, x);
}

void PackedForward::add_experts(const Experts& experts, const at::Tensor& input,
                                const at::Tensor& slots, at::Tensor& x) {
  const int64_t rows = x.size(0), most = kernels_ ? kernels_->max_expert_rows() : 0;
  if (rows > most && !is_quantised()) {
    bicached::add_experts(input, experts, config_.experts, x);
    return;
  }
  for (int64_t begin = 0; begin < rows; begin += most) {  // once, unless they are float8
    const int64_t count = std::min(most, rows - begin);
    at::Tensor some = x.narrow(0, begin, count);
    kernels_->add_experts(input.narrow(0, begin, count), experts, slots, some);
  }
}

void PackedForward::add_mlp(const Mlp& mlp, const Activation& input, at::Tensor& x) {
  const int64_t rows = x.size(0);
  at::Tensor gate_up = scratch_.gate_up.narrow(0, 0, rows);
  multiply(mlp.gate_up, input, gate_up);
  Activation activated = room(scratch_.activated, rows, mlp.down);
  if (kernels_) {
    kernels_->silu_times_up(gate_up, activated.values, activated.scales);
  } else {
    silu_times_up(gate_up, activated.values);
  }
  add_product(mlp.down, activated, x);
}

/// Whether nothing but its rows and their places tells it from other forwards of its size.
bool PackedForward::is_capturable(const Forward& forward, const ForwardPlan& plan) const {
  const LayerSegment& segment = plan.segments.front();
  if (!kernels_ || observer_ || plan.segments.size() != 1) return false;
  // libtorch's way through experts allocates memory, which a graph may not.
  const int64_t most_rows = config_.sparse_layers.empty()
                                ? kMaxGraphRows
                                : std::min(kMaxGraphRows, kernels_->max_expert_rows());
  return segment.num_rows > 0 && segment.num_rows <= most_rows &&
         kernels_->suits(segment.sequences) &&
         std::ranges::all_of(forward.groups,
                             [](const RowGroup& g) { return g.capture_to == kNoId; });
}

at::Tensor PackedForward::run(const Forward& forward, const BoundaryStates& states) {
  ForwardPlan plan = plan_forward(forward, config_, pool_.slabs());
  pending_ = at::Tensor();  // of a forward that failed
  PaddedSize size;
  const bool is_padded = is_capturable(forward, plan);
  const bool all_wanted =
      static_cast<int64_t>(plan.wanted_rows.size()) == plan.segments.back().num_rows;
  const bool only_wanted = !is_padded && !all_wanted && !observer_;
  // An observer sees whole tensors, and rows of nothing would choose experts of their own.
  const bool is_filled = weights_.embedding.is_cpu() && !observer_ && config_.sparse_layers.empty();
  if (is_padded) {
    const LayerSegment& segment = plan.segments.front();
    size = padded_size(segment.num_rows,
                       static_cast<int64_t>(attention_tiles(segment.sequences).size()) / 4);
    fill_segment(plan, 0, size.num_rows);
  } else if (is_filled) {
    fill_plan(plan, kCpuRowStep);
  }
  int64_t most_rows = 0;
  for (const LayerSegment& segment : plan.segments) {
    most_rows = std::max(most_rows, segment.num_rows);
  }
  reserve(most_rows);
  const ForwardIndex index = uploader_.upload(plan, size.num_tiles, only_wanted);
  const at::Tensor x =
      is_padded ? run_padded(index, size) : run_segments(plan, index, only_wanted, forward, states);
  return finish(x, index.logit_rows);
}

at::Tensor PackedForward::run_padded(const ForwardIndex& index, const PaddedSize& size) {
  if (graphs_ && std::exchange(index_version_, uploader_.version()) != uploader_.version()) {
    graphs_->clear();
  }
  const auto work = [&] {
    at::Tensor x = embed(index.tokens);
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      attend_layer(layer, x, index.segments.front(), index, false);
      mlp_layer(layer, x, index.segments.front().rows.slots);
    }
    settle(x);
  };
  if (graphs_) {
    graphs_->run(size, work);
  } else {
    work();
  }
  return scratch_.x.narrow(0, 0, size.num_rows);
}

at::Tensor PackedForward::run_segments(const ForwardPlan& plan, const ForwardIndex& index,
                                       bool only_wanted, const Forward& forward,
                                       const BoundaryStates& states) {
  at::Tensor x = embed(index.tokens);
  observe("embedding", -1, x);
  const bool captures =
      std::ranges::any_of(forward.groups, [](const RowGroup& g) { return g.capture_to != kNoId; });
  for (size_t s = 0; s < plan.segments.size(); ++s) {
    const LayerSegment& segment = plan.segments[s];
    if (s > 0) x = enter_segment(x, plan, s, forward, states);
    if (segment.num_rows == 0) continue;
    for (int layer = segment.first_layer; layer < segment.end_layer; ++layer) {
      if (captures) settle(x);
      capture(x, layer, segment, forward, states);
      attend_layer(layer, x, index.segments[s], index,
                   only_wanted && layer == config_.num_layers - 1);
      if (x.size(0) > 0) mlp_layer(layer, x, {});
    }
    settle(x);
    capture(x, segment.end_layer, segment, forward, states);
  }
  return x;
}

/// The final norm of these rows.
at::Tensor PackedForward::finish(const at::Tensor& x, const at::Tensor& rows) const {
  at::Tensor normed = at::empty({rows.size(0), config_.hidden_size}, weights_.embedding.options());
  if (rows.size(0) == 0) return normed;
  if (kernels_) {
    kernels_->rms_norm(x, weights_.final_norm, rows, normed);
  } else {
    rms_norm(x.index_select(0, rows), weights_.final_norm, config_.norm_eps, normed);
  }
  observe("final_norm", -1, normed);
  return normed;
}

at::Tensor PackedForward::logits(const at::Tensor& hidden) const {
  if (!hidden.is_cpu()) return at::mm(hidden, weights_.head.t());
  const int64_t rows = hidden.size(0), filled = filled_size(rows, kCpuRowStep);
  const at::Tensor input = at::constant_pad_nd(hidden, {0, 0, 0, filled - rows});
  return at::mm(input, weights_.head.t()).narrow(0, 0, rows);
}

void PackedForward::observe(const char* name, int layer, const at::Tensor& value) const {
  if (!observer_) return;
  observer_(layer < 0 ? name : "layers." + std::to_string(layer) + "." + name, value);
}

}  // namespace bicached
