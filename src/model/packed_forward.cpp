#include "model/packed_forward.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "bicached/error.h"
#include "model/head_norm.h"

namespace bicached {
namespace {

/// A host vector as a tensor on the device; on the CPU without a copy, so the vector must live on.
template <class T>
at::Tensor to_device(const std::vector<T>& values, const at::Device& device) {
  const auto type = sizeof(T) == 8 ? at::kLong : at::kInt;
  const at::Tensor host = at::from_blob(const_cast<T*>(values.data()),
                                        {static_cast<int64_t>(values.size())}, at::dtype(type));
  return device.is_cpu() ? host : host.to(device);
}

}  // namespace

/// A segment's index tensors on the device.
struct PackedForward::SegmentIndex {
  RowIndex rows;
  AttentionIndex attention;
  at::Tensor wanted_rows;           // last segment only: [W]
  AttentionIndex wanted_attention;  // last segment only
  bool all_wanted = false;
};

PackedForward::PackedForward(const ModelConfig& config, const ModelWeights& weights, KvPool& pool)
    : config_(config),
      weights_(weights),
      pool_(pool),
      kernel_(choose_attention(weights.embedding.options(), config.head_size)) {
  heads_ = {config.num_heads, config.num_kv_heads, config.head_size};
  // No canvas is longer than the pool, and a table of a claimed million positions would be waste.
  const int64_t positions = std::min<int64_t>(config.max_length, pool.slabs().capacity_tokens());
  rope_ =
      make_rope_table(positions, config.head_size, config.rope_theta, weights.embedding.device());
}

std::vector<PackedForward::SegmentIndex> PackedForward::upload(const ForwardPlan& plan) const {
  // Everything goes to the device in one copy: many small ones would cost a launch each.
  std::vector<int64_t> wide;
  std::vector<int32_t> narrow;
  const auto add_attention = [&](const std::vector<AttentionSequence>& groups) {
    for (const AttentionSequence& g : groups) narrow.push_back(static_cast<int32_t>(g.first_row));
    narrow.push_back(groups.empty()
                         ? 0
                         : static_cast<int32_t>(groups.back().first_row + groups.back().num_rows));
    for (const AttentionSequence& g : groups) narrow.push_back(static_cast<int32_t>(g.key_begin));
    narrow.push_back(0);
    for (const AttentionSequence& g : groups) narrow.push_back(static_cast<int32_t>(g.num_keys));
  };
  for (const LayerSegment& segment : plan.segments) {
    wide.insert(wide.end(), segment.positions.begin(), segment.positions.end());
    wide.insert(wide.end(), segment.slots.begin(), segment.slots.end());
    add_attention(segment.sequences);
  }
  wide.insert(wide.end(), plan.wanted_rows.begin(), plan.wanted_rows.end());
  add_attention(plan.wanted);

  const at::Tensor wide_device = to_device(wide, weights_.embedding.device()).clone();
  const at::Tensor narrow_device = to_device(narrow, weights_.embedding.device()).clone();
  int64_t wide_at = 0, narrow_at = 0;
  const auto take_wide = [&](size_t count) {
    const auto n = static_cast<int64_t>(count);
    wide_at += n;
    return wide_device.narrow(0, wide_at - n, n);
  };
  const auto take_narrow = [&](size_t count) {
    const auto n = static_cast<int64_t>(count);
    narrow_at += n;
    return narrow_device.narrow(0, narrow_at - n, n);
  };
  const auto take_attention = [&](const std::vector<AttentionSequence>& groups) {
    AttentionIndex index;
    index.sequences = groups;
    index.query_starts = take_narrow(groups.size() + 1);
    index.key_starts = take_narrow(groups.size() + 1);
    index.key_counts = take_narrow(groups.size());
    for (const AttentionSequence& g : groups) {
      index.max_rows = std::max(index.max_rows, g.num_rows);
      index.max_keys = std::max(index.max_keys, g.num_keys);
    }
    return index;
  };
  std::vector<SegmentIndex> indices;
  for (const LayerSegment& segment : plan.segments) {
    SegmentIndex index;
    index.rows.positions = take_wide(segment.positions.size());
    index.rows.slots = take_wide(segment.slots.size());
    index.attention = take_attention(segment.sequences);
    indices.push_back(std::move(index));
  }
  SegmentIndex& last = indices.back();
  last.wanted_rows = take_wide(plan.wanted_rows.size());
  last.wanted_attention = take_attention(plan.wanted);
  last.all_wanted = static_cast<int64_t>(plan.wanted_rows.size()) == plan.segments.back().num_rows;
  return indices;
}

at::Tensor PackedForward::enter_segment(const at::Tensor& x, const ForwardPlan& plan,
                                        size_t segment, const Forward& forward,
                                        const BoundaryStates& states) const {
  const LayerSegment& now = plan.segments[segment];
  std::vector<at::Tensor> pieces;
  for (const PlannedGroup& planned : now.groups) {
    const RowGroup& group = forward.groups[static_cast<size_t>(planned.group)];
    if (group.enter_layer < now.first_layer) {
      const auto& before = plan.segments[segment - 1].groups;
      const auto it = std::find_if(before.begin(), before.end(),
                                   [&](const PlannedGroup& g) { return g.group == planned.group; });
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
  if (pieces.empty()) return at::empty({0, config_.hidden_size}, weights_.embedding.options());
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

at::Tensor PackedForward::scratch(at::Tensor& buffer, int64_t rows, int64_t columns) const {
  if (!buffer.defined() || buffer.size(0) < rows) {
    buffer = at::Tensor();  // give the old one back first
    buffer = at::empty({rows, columns}, weights_.embedding.options());
  }
  return buffer.narrow(0, 0, rows);
}

void PackedForward::attend_layer(int layer, at::Tensor& x, const SegmentIndex& index,
                                 bool only_wanted) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t query_size = heads_.num_heads * heads_.head_size;
  at::Tensor normed = scratch(scratch_.normed, x.size(0), config_.hidden_size);
  rms_norm(x, w.attention_norm, config_.norm_eps, normed);
  at::Tensor qkv = scratch(scratch_.qkv, x.size(0), heads_.qkv_size());
  if (w.qkv_bias.defined()) {
    at::addmm_out(qkv, w.qkv_bias, normed, w.qkv.t());
  } else {
    at::mm_out(qkv, normed, w.qkv.t());
  }
  const int64_t rows = x.size(0);
  const at::Tensor heads = qkv.view({rows, -1, heads_.head_size});
  const at::Tensor keys = heads.narrow(1, heads_.num_heads, heads_.num_kv_heads);
  at::Tensor queries = heads.narrow(1, 0, heads_.num_heads);
  if (w.query_norm.defined()) {
    norm_heads(queries, w.query_norm, config_.norm_eps);
    norm_heads(keys, w.key_norm, config_.norm_eps);
  }
  observe("q_pre_rope", layer, queries);
  observe("k_pre_rope", layer, keys);
  observe("v", layer, heads.narrow(1, heads_.num_heads + heads_.num_kv_heads, heads_.num_kv_heads));
  rotate_and_store(qkv, heads_, rope_, index.rows, {pool_.keys(layer), pool_.values(layer)});
  observe("q_rope", layer, queries);
  observe("k_rope", layer, keys);
  if (only_wanted) {
    x = x.index_select(0, index.wanted_rows);
    queries = queries.index_select(0, index.wanted_rows);
    if (x.size(0) == 0) return;
  }
  at::Tensor attention = scratch(scratch_.attention, x.size(0), query_size);
  attend(queries, pool_.keys(layer), pool_.values(layer),
         only_wanted ? index.wanted_attention : index.attention, kernel_, attention);
  observe("attention", layer, attention);
  x.addmm_(attention, w.attention_out.t());
}

void PackedForward::mlp_layer(int layer, at::Tensor& x) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  at::Tensor normed = scratch(scratch_.normed, x.size(0), config_.hidden_size);
  rms_norm(x, w.mlp_norm, config_.norm_eps, normed);
  at::Tensor gate_up = scratch(scratch_.gate_up, x.size(0), 2 * int64_t{config_.mlp_size});
  at::mm_out(gate_up, normed, w.gate_up.t());
  at::Tensor activated = scratch(scratch_.activated, x.size(0), config_.mlp_size);
  silu_times_up(gate_up, activated);
  x.addmm_(activated, w.down.t());
  observe("hidden", layer, x);
}

at::Tensor PackedForward::run(const Forward& forward, const BoundaryStates& states) {
  const ForwardPlan plan = plan_forward(forward, config_, pool_.slabs());
  const std::vector<SegmentIndex> indices = upload(plan);
  const std::vector<int64_t> ids(plan.tokens.begin(), plan.tokens.end());
  at::Tensor x = at::embedding(weights_.embedding, to_device(ids, weights_.embedding.device()));
  observe("embedding", -1, x);
  const int last_layer = config_.num_layers - 1;
  const bool only_wanted = !indices.back().all_wanted && !observer_;
  for (size_t s = 0; s < plan.segments.size(); ++s) {
    const LayerSegment& segment = plan.segments[s];
    if (s > 0) x = enter_segment(x, plan, s, forward, states);
    if (segment.num_rows == 0) continue;
    for (int layer = segment.first_layer; layer < segment.end_layer; ++layer) {
      capture(x, layer, segment, forward, states);
      attend_layer(layer, x, indices[s], only_wanted && layer == last_layer);
      if (x.size(0) > 0) mlp_layer(layer, x);
    }
    capture(x, segment.end_layer, segment, forward, states);
  }
  if (plan.wanted_rows.empty()) return x.narrow(0, 0, 0);
  if (!only_wanted && !indices.back().all_wanted) {
    x = x.index_select(0, indices.back().wanted_rows);
  }
  at::Tensor normed = at::empty(x.sizes(), x.options());
  rms_norm(x, weights_.final_norm, config_.norm_eps, normed);
  observe("final_norm", -1, normed);
  const bool in_order = plan.logit_index.size() == plan.wanted_rows.size() &&
                        std::is_sorted(plan.logit_index.begin(), plan.logit_index.end());
  return in_order ? normed : normed.index_select(0, to_device(plan.logit_index, normed.device()));
}

at::Tensor PackedForward::logits(const at::Tensor& hidden) const {
  return at::mm(hidden, weights_.head.t()).to(at::kFloat);
}

void PackedForward::observe(const char* name, int layer, const at::Tensor& value) const {
  if (!observer_) return;
  observer_(layer < 0 ? name : "layers." + std::to_string(layer) + "." + name, value);
}

}  // namespace bicached
