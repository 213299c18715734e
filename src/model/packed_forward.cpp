#include "model/packed_forward.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>

#include <algorithm>
#include <cmath>

#include "bicached/error.h"
#include "model/cpu_kernels.h"

namespace bicached {

/// A run of layers with the same rows.
struct PackedForward::Layout {
  std::vector<int> groups;           // indices into Forward::groups, in packed order
  std::vector<int64_t> begins;       // first packed row of each, and the number of rows at the end
  std::vector<int64_t> positions;    // [N] on the canvas
  std::vector<int64_t> slots;        // [N] in the pool
  std::vector<int64_t> key_begins;   // a group: first key in the pool
  std::vector<int64_t> key_lengths;  // a group: number of keys
  // The same on the device, where one is used.
  at::Tensor device_positions, device_slots;
  at::Tensor query_offsets, key_starts, key_counts;  // int32
  int64_t longest_query = 0, longest_key = 0;

  int64_t num_rows() const { return begins.back(); }
  int64_t rows_of(size_t i) const { return begins[i + 1] - begins[i]; }
};

PackedForward::PackedForward(const ModelConfig& config, const ModelWeights& weights, KvPool& pool)
    : config_(config),
      weights_(weights),
      pool_(pool),
      device_(weights.embedding.device()),
      dtype_(weights.embedding.scalar_type()) {
  // Angles in float32, as the references compute them.
  const auto options = at::TensorOptions().dtype(at::kFloat);
  const at::Tensor exponent = at::arange(0, config.head_size, 2, options) / config.head_size;
  const at::Tensor turn = at::pow(at::Scalar(config.rope_theta), exponent).reciprocal();
  const at::Tensor angle = at::outer(at::arange(config.max_length, options), turn);
  cos_ = angle.cos().to(device_);
  sin_ = angle.sin().to(device_);
}

void PackedForward::observe(const std::string& name, const at::Tensor& value) const {
  if (observer_) observer_(name, value);
}

at::Tensor PackedForward::to_device(const std::vector<int64_t>& values) const {
  return at::from_blob(const_cast<int64_t*>(values.data()), {static_cast<int64_t>(values.size())},
                       at::kLong)
      .to(device_, at::kLong, /*non_blocking=*/false, /*copy=*/true);
}

PackedForward::Layout PackedForward::make_layout(const Forward& forward,
                                                 std::vector<int> groups) const {
  Layout layout;
  layout.groups = std::move(groups);
  layout.begins.push_back(0);
  for (const int index : layout.groups) {
    const RowGroup& group = forward.groups[static_cast<size_t>(index)];
    const int64_t slab = pool_.slabs().range(group.slab).begin;
    for (int i = 0; i < group.num_rows(); ++i) {
      layout.positions.push_back(group.row_at(i));
      layout.slots.push_back(slab + group.row_at(i));
    }
    layout.begins.push_back(static_cast<int64_t>(layout.positions.size()));
    layout.key_begins.push_back(slab);
    layout.key_lengths.push_back(group.key_end);
    layout.longest_query = std::max<int64_t>(layout.longest_query, group.num_rows());
    layout.longest_key = std::max<int64_t>(layout.longest_key, group.key_end);
  }
  if (device_.is_cpu() && dtype_ == at::kFloat) return layout;
  layout.device_positions = to_device(layout.positions);
  layout.device_slots = to_device(layout.slots);
  if (!device_.is_cpu()) {
    layout.query_offsets = to_device(layout.begins).to(at::kInt);
    layout.key_starts = to_device(layout.key_begins).to(at::kInt);
    layout.key_counts = to_device(layout.key_lengths).to(at::kInt);
  }
  return layout;
}

at::Tensor PackedForward::embed(const Forward& forward, const Layout& layout) const {
  std::vector<int64_t> tokens;
  tokens.reserve(layout.positions.size());
  for (const int index : layout.groups) {
    const auto& ids = forward.groups[static_cast<size_t>(index)].tokens;
    tokens.insert(tokens.end(), ids.begin(), ids.end());
  }
  if (static_cast<int64_t>(tokens.size()) != layout.num_rows()) {
    throw Error(ErrorCode::kInternal, "a row group that enters at layer 0 needs a token a row");
  }
  return at::embedding(weights_.embedding, to_device(tokens));
}

/// Packed rows of the next layout: those that stay, taken over, and those that enter, from their
/// entry.
at::Tensor PackedForward::change_rows(const Forward& forward, const Layout& from, const Layout& to,
                                      const at::Tensor& x, int layer,
                                      const BoundaryStates& states) const {
  std::vector<at::Tensor> pieces;
  for (const int index : to.groups) {
    const RowGroup& group = forward.groups[static_cast<size_t>(index)];
    const auto old = std::find(from.groups.begin(), from.groups.end(), index);
    if (old != from.groups.end()) {
      const auto i = static_cast<size_t>(old - from.groups.begin());
      pieces.push_back(x.narrow(0, from.begins[i], from.rows_of(i)));
    } else {
      const at::Tensor state = states.load(group.enter_from, layer);
      pieces.push_back(group.rows.empty() ? state.narrow(0, group.begin, group.end - group.begin)
                                          : state.index_select(0, to_device({group.rows.begin(),
                                                                             group.rows.end()})));
    }
  }
  return pieces.empty() ? x.narrow(0, 0, 0) : at::cat(pieces);
}

void PackedForward::capture(const Forward& forward, const Layout& layout, const at::Tensor& x,
                            int layer, BoundaryStates& states) const {
  for (size_t i = 0; i < layout.groups.size(); ++i) {
    const RowGroup& group = forward.groups[static_cast<size_t>(layout.groups[i])];
    if (group.capture_to != kNoId) {
      states.capture(group.capture_to, layer, x.narrow(0, layout.begins[i], layout.rows_of(i)));
    }
  }
}

at::Tensor PackedForward::run(const Forward& forward, BoundaryStates& states) {
  const auto groups_at = [&](int layer) {
    std::vector<int> groups;
    for (int i = 0; i < static_cast<int>(forward.groups.size()); ++i) {
      const RowGroup& group = forward.groups[static_cast<size_t>(i)];
      const int leave = group.leave_layer < 0 ? config_.num_layers : group.leave_layer;
      if (group.num_rows() > 0 && group.enter_layer <= layer && layer < leave) groups.push_back(i);
    }
    return groups;
  };
  Layout layout = make_layout(forward, groups_at(0));
  at::Tensor x = embed(forward, layout);
  observe("embedding", x);
  const int last = config_.num_layers - 1;
  for (int layer = 0; layer <= last; ++layer) {
    std::vector<int> groups = groups_at(layer);
    if (groups != layout.groups) {
      Layout next = make_layout(forward, std::move(groups));
      x = change_rows(forward, layout, next, x, layer, states);
      layout = std::move(next);
    }
    if (layer > 0) capture(forward, layout, x, layer, states);
    if (layer < last || observer_) {
      x = run_layer(x, layer, layout);
      observe("layers." + std::to_string(layer) + ".hidden", x);
    }
  }

  // The rows whose logits are wanted, as packed rows and as groups of their own.
  Layout wanted_layout;
  std::vector<int64_t> wanted;
  Forward only_wanted;
  std::vector<int> wanted_groups;
  for (size_t i = 0; i < forward.logit_rows.size();) {
    const int index = forward.logit_rows[i].group;
    const auto at = std::find(layout.groups.begin(), layout.groups.end(), index);
    if (at == layout.groups.end()) {
      throw Error(ErrorCode::kInternal, "logits of rows that are not in the last layer");
    }
    const RowGroup& group = forward.groups[static_cast<size_t>(index)];
    RowGroup some;
    some.slab = group.slab;
    some.key_end = group.key_end;
    for (; i < forward.logit_rows.size() && forward.logit_rows[i].group == index; ++i) {
      const int row = forward.logit_rows[i].row;
      const auto in_rows = std::lower_bound(group.rows.begin(), group.rows.end(), row);
      const auto offset = group.rows.empty() ? row - group.begin : in_rows - group.rows.begin();
      wanted.push_back(layout.begins[static_cast<size_t>(at - layout.groups.begin())] + offset);
      some.rows.push_back(row);
    }
    wanted_groups.push_back(static_cast<int>(only_wanted.groups.size()));
    only_wanted.groups.push_back(std::move(some));
  }
  const at::Tensor wanted_rows = to_device(wanted);
  if (observer_) {
    x = norm(x, weights_.final_norm);
    observe("final_norm", x);
    return x.index_select(0, wanted_rows);
  }
  wanted_layout = make_layout(only_wanted, std::move(wanted_groups));
  x = run_last_layer(x, layout, wanted_rows, wanted_layout);
  return norm(x, weights_.final_norm);
}

at::Tensor PackedForward::run_layer(const at::Tensor& x, int layer, const Layout& layout) const {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  at::Tensor qkv = at::linear(norm(x, w.attention_norm), w.qkv, w.qkv_bias);
  rotate_and_store_rows(qkv, layer, layout);
  const at::Tensor q = qkv.narrow(1, 0, int64_t{config_.num_heads} * config_.head_size);
  return finish_layer(x, attend(q, layer, layout), layer);
}

/// K and V of all rows, then only the wanted rows: nobody reads the others any more.
at::Tensor PackedForward::run_last_layer(const at::Tensor& x, const Layout& layout,
                                         const at::Tensor& wanted,
                                         const Layout& wanted_layout) const {
  const int layer = config_.num_layers - 1;
  const LayerWeights& w = weights_.layers.back();
  at::Tensor qkv = at::linear(norm(x, w.attention_norm), w.qkv, w.qkv_bias);
  rotate_and_store_rows(qkv, layer, layout);
  const at::Tensor q =
      qkv.narrow(1, 0, int64_t{config_.num_heads} * config_.head_size).index_select(0, wanted);
  return finish_layer(x.index_select(0, wanted), attend(q, layer, wanted_layout), layer);
}

/// Attention output to residual stream, then the MLP.
at::Tensor PackedForward::finish_layer(const at::Tensor& x, const at::Tensor& attended,
                                       int layer) const {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  observe("layers." + std::to_string(layer) + ".attention", attended);
  at::Tensor hidden = at::linear(attended, w.attention_out).add_(x);
  const at::Tensor gate_up = at::linear(norm(hidden, w.mlp_norm), w.gate_up);
  at::Tensor gate = at::silu(gate_up.narrow(1, 0, config_.mlp_size));
  gate.mul_(gate_up.narrow(1, config_.mlp_size, config_.mlp_size));
  return hidden.add_(at::linear(gate, w.down));
}

at::Tensor PackedForward::norm(const at::Tensor& x, const at::Tensor& weight) const {
  if (device_.is_cpu() && dtype_ == at::kFloat) {
    at::Tensor out = at::empty_like(x);
    const at::Tensor rows = x.contiguous();
    rms_norm_rows(rows.const_data_ptr<float>(), weight.const_data_ptr<float>(),
                  out.mutable_data_ptr<float>(), x.size(0), x.size(1),
                  static_cast<float>(config_.norm_eps));
    return out;
  }
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scale = at::rsqrt(wide.square().mean(-1, true).add_(config_.norm_eps));
  return (wide * scale).to(dtype_).mul_(weight);
}

void PackedForward::rotate_and_store_rows(at::Tensor& qkv, int layer, const Layout& layout) const {
  const int64_t n = qkv.size(0), size = config_.head_size;
  const int64_t q_size = config_.num_heads * size, kv_size = config_.num_kv_heads * size;
  at::Tensor keys = pool_.keys(layer), values = pool_.values(layer);
  if (observer_) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    observe(prefix + "q_pre_rope", qkv.narrow(1, 0, q_size).view({n, -1, size}).clone());
    observe(prefix + "k_pre_rope", qkv.narrow(1, q_size, kv_size).view({n, -1, size}).clone());
    observe(prefix + "v", qkv.narrow(1, q_size + kv_size, kv_size).view({n, -1, size}).clone());
  }
  if (device_.is_cpu() && dtype_ == at::kFloat) {
    rotate_and_store({qkv.mutable_data_ptr<float>(), keys.mutable_data_ptr<float>(),
                      values.mutable_data_ptr<float>(), cos_.const_data_ptr<float>(),
                      sin_.const_data_ptr<float>(), config_.num_heads, config_.num_kv_heads, size},
                     layout.positions, layout.slots);
  } else {
    // q and k together: they are neighbours in a row and rotate alike.
    at::Tensor qk = qkv.narrow(1, 0, q_size + kv_size).view({n, -1, size});
    const at::Tensor cos = cos_.index_select(0, layout.device_positions).unsqueeze(1);
    const at::Tensor sin = sin_.index_select(0, layout.device_positions).unsqueeze(1);
    const at::Tensor wide = qk.to(at::kFloat);
    const at::Tensor a = wide.narrow(2, 0, size / 2), b = wide.narrow(2, size / 2, size / 2);
    qk.copy_(at::cat({a * cos - b * sin, b * cos + a * sin}, -1));
    keys.index_copy_(0, layout.device_slots, qkv.narrow(1, q_size, kv_size).view({n, -1, size}));
    values.index_copy_(0, layout.device_slots,
                       qkv.narrow(1, q_size + kv_size, kv_size).view({n, -1, size}));
  }
  if (observer_) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    observe(prefix + "q_rope", qkv.narrow(1, 0, q_size).view({n, -1, size}));
    observe(prefix + "k_rope", keys.index_select(0, to_device(layout.slots)));
  }
}

/// q: [N, H D], rotated. Returns [N, H D].
at::Tensor PackedForward::attend(const at::Tensor& q, int layer, const Layout& layout) const {
  const bool packed = device_.is_cuda() && dtype_ != at::kFloat;
  return packed ? attend_packed(q, layer, layout) : attend_each(q, layer, layout);
}

/// One fused attention a group over views of the pool. Heads that share a KV head are stacked as
/// more queries of it: without a mask that is the same, and K and V need not be repeated.
at::Tensor PackedForward::attend_each(const at::Tensor& q, int layer, const Layout& layout) const {
  const int64_t heads = config_.num_heads, kv = config_.num_kv_heads, size = config_.head_size;
  const int64_t share = heads / kv;
  at::Tensor out = at::empty({q.size(0), heads * size}, q.options());
  for (size_t i = 0; i < layout.groups.size(); ++i) {
    const int64_t n = layout.rows_of(i);
    const auto view = [&](const at::Tensor& pool) {  // [1, G, keys, D]
      return pool.narrow(0, layout.key_begins[i], layout.key_lengths[i])
          .transpose(0, 1)
          .unsqueeze(0);
    };
    const at::Tensor queries = q.narrow(0, layout.begins[i], n)  // [1, G, share n, D]
                                   .unflatten(1, {kv, share, size})
                                   .permute({1, 2, 0, 3})
                                   .reshape({1, kv, share * n, size});
    const at::Tensor attended = at::scaled_dot_product_attention(queries, view(pool_.keys(layer)),
                                                                 view(pool_.values(layer)));
    out.narrow(0, layout.begins[i], n)
        .view({n, kv, share, size})
        .copy_(attended.view({kv, share, n, size}).permute({2, 0, 1, 3}));
  }
  return out;
}

/// All groups in one variable-length flash attention over the whole pool: cum_seq_k holds where
/// each group's keys start (in any order, with gaps), seqused_k how many there are.
at::Tensor PackedForward::attend_packed(const at::Tensor& q, int layer,
                                        const Layout& layout) const {
  const int64_t heads = config_.num_heads, size = config_.head_size;
  const at::Tensor queries = q.unflatten(1, {heads, size});
  const auto result = at::_flash_attention_forward(
      queries, pool_.keys(layer), pool_.values(layer), layout.query_offsets, layout.key_starts,
      layout.longest_query, layout.longest_key, /*dropout_p=*/0.0, /*is_causal=*/false,
      /*return_debug_mask=*/false, /*scale=*/std::nullopt, /*window_size_left=*/std::nullopt,
      /*window_size_right=*/std::nullopt, /*seqused_k=*/layout.key_counts);
  return std::get<0>(result).reshape({q.size(0), heads * size});
}

at::Tensor PackedForward::logits(const at::Tensor& hidden) const {
  return at::linear(hidden, weights_.head).to(at::kFloat);
}

}  // namespace bicached
