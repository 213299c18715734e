#include "model/cuda/model_kernels.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>

#include "base/log.h"
#include "bicached/error.h"
#include "model/cuda/kernel_source.h"

namespace bicached {
namespace {

constexpr int kTileRows = 32;
/// More parts cost more to add up than they bring.
constexpr int64_t kMaxSplits = 8;
/// Longer sequences go to flash attention, which reads a key once for more of their rows, unless it
/// is little work in all: so many products of numbers, some microseconds.
constexpr int64_t kMaxTiledRows = 64, kLittleAttention = int64_t{1} << 30;

/// With more rows for each expert than this libtorch's grouped products are faster.
constexpr int64_t kMaxRowsPerExpert = 64;
/// Scores that a warp can hold.
constexpr int kMaxExperts = 512;

bool fits(const ModelConfig& model) {
  const int size = model.head_size;
  // A bias is added where keys are rotated, which is after the norm of heads.
  return (size == 32 || size == 64 || size == 128) && model.rotary_size % 16 == 0 &&
         model.hidden_size % 8 == 0 && model.mlp_size % 8 == 0 &&
         !(model.qkv_bias && model.qk_norm);
}

/// Whether its experts, if it has any, are a matter of `ModelKernels::add_experts`.
bool has_expert_kernels(const ModelConfig& model, bool fp8) {
  const ExpertsConfig& experts = model.experts;
  const int depth = fp8 ? 64 : 32;  // of a step
  return experts.num_experts > 0 && experts.num_experts + experts.num_shared() <= kMaxExperts &&
         experts.size % depth == 0 && model.hidden_size % depth == 0;
}

std::vector<std::string> options_of(const ModelConfig& model, bool fp8) {
  const auto define = [](const char* name, int value) {
    return std::string("-D") + name + "=" + std::to_string(value);
  };
  const auto define_number = [](const char* name, double value) {
    char text[40];
    std::snprintf(text, sizeof text, "%.9ef", value);
    return std::string("-D") + name + "=" + text;
  };
  const ExpertsConfig& experts = model.experts;
  return {define("HIDDEN", model.hidden_size),
          define("MLP", model.mlp_size),
          define("HEADS", model.num_heads),
          define("KV_HEADS", model.num_kv_heads),
          define("HEAD_SIZE", model.head_size),
          define("ROTARY", model.rotary_size),
          define_number("EPS", model.norm_eps),
          define("LOGITS", model.num_logits),
          define("VOCAB", model.vocab_size),
          define("MASK_TOKEN", model.mask_token),
          define("EXPERTS", has_expert_kernels(model, fp8) ? experts.num_experts : 0),
          define("SHARED", experts.num_shared()),
          define("EXPERT_FP8", fp8),
          define("CHOSEN", experts.num_chosen),
          define("GROUPS", experts.num_groups),
          define("CHOSEN_GROUPS", experts.num_chosen_groups),
          define("SIGMOID", experts.sigmoid),
          define("ROUTER_BIAS", static_cast<int>(experts.router_bias)),
          define("NORMALIZED", experts.normalized),
          define_number("WEIGHT_SCALE", experts.weight_scale)};
}

/// Null where it is undefined.
const void* data(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

}  // namespace

std::vector<int32_t> attention_tiles(const std::vector<AttentionSequence>& sequences) {
  std::vector<int32_t> tiles;
  for (const AttentionSequence& sequence : sequences) {
    for (int64_t row = 0; row < sequence.num_rows; row += kTileRows) {
      const int64_t rows = std::min<int64_t>(kTileRows, sequence.num_rows - row);
      for (const int64_t n :
           {sequence.first_row + row, rows, sequence.key_begin, sequence.num_keys}) {
        tiles.push_back(static_cast<int32_t>(n));
      }
    }
  }
  return tiles;
}

std::unique_ptr<ModelKernels> ModelKernels::make(const ModelConfig& model,
                                                 const at::Tensor& embedding, bool fp8) {
  if (!embedding.is_cuda() || embedding.scalar_type() != at::kBFloat16 || !fits(model)) {
    return nullptr;
  }
  try {
    if (CudaRuntime::get().compute_capability(embedding.get_device()) < 80) return nullptr;
    return std::unique_ptr<ModelKernels>(new ModelKernels(model, embedding, fp8));
  } catch (const Error& error) {
    log_warn(std::string("the forward runs without kernels of its own, and slower: ") +
             error.what());
    return nullptr;
  }
}

ModelKernels::ModelKernels(const ModelConfig& model, const at::Tensor& embedding, bool fp8)
    : model_(model) {
  const CudaRuntime& cuda = CudaRuntime::get();
  const c10::DeviceGuard guard(embedding.device());
  module_ = cuda.compile(kKernelSource, options_of(model, fp8), guard.current_device().index());
  embed_ = cuda.kernel(module_, "embed");
  rms_norm_ = cuda.kernel(module_, "rms_norm");
  norm_heads_ = cuda.kernel(module_, "norm_heads");
  rotate_and_store_ = cuda.kernel(module_, "rotate_and_store");
  quantise_ = cuda.kernel(module_, "quantise");
  silu_times_up_ = cuda.kernel(module_, "silu_times_up");
  quantised_silu_times_up_ = cuda.kernel(module_, "quantised_silu_times_up");
  attend_ = cuda.kernel(module_, "attend");
  row_statistics_ = cuda.kernel(module_, "row_statistics");
  draw_ = cuda.kernel(module_, "draw");
  if (has_expert_kernels(model, fp8)) {
    router_logits_ = cuda.kernel(module_, "router_logits");
    choose_experts_ = cuda.kernel(module_, "choose_experts");
    sort_pairs_ = cuda.kernel(module_, "sort_pairs");
    multiply_by_expert_ = cuda.kernel(module_, "multiply_by_expert");
    add_weighted_ = cuda.kernel(module_, "add_weighted");
    make_expert_buffers(embedding.options());
  }
  max_blocks_ = cuda.num_multiprocessors(guard.current_device().index());
  const auto options = embedding.options();
  const int64_t state = (4 * int64_t{model.head_size} / 8 + 4) * 64;  // kState in attention.cu
  partial_ = at::empty({max_blocks_, state}, options.dtype(at::kFloat));
  arrived_ = at::zeros({max_blocks_}, options.dtype(at::kInt));
}

ModelKernels::~ModelKernels() {
  const c10::DeviceGuard guard(arrived_.device());
  CudaRuntime::get().unload(module_);
}

template <class... Arguments>
void ModelKernels::launch(void* kernel, CudaGrid grid, int block, Arguments... arguments) const {
  if (grid.x == 0) return;
  void* pointers[] = {&arguments...};
  CudaRuntime::get().launch(kernel, stream_, grid, block, pointers);
}

void ModelKernels::embed(const at::Tensor& table, const at::Tensor& tokens, at::Tensor& out) const {
  launch(embed_, {out.size(0)}, 256, data(table), data(tokens), data(out));
}

void ModelKernels::rms_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& rows,
                            at::Tensor& out) const {
  const void* none = nullptr;
  launch(rms_norm_, {out.size(0)}, 256, data(x), none, data(weight), data(rows), data(out), none);
}

void ModelKernels::add_and_norm(at::Tensor& x, const at::Tensor& add, const at::Tensor& weight,
                                at::Tensor& out, at::Tensor& scales) const {
  const void* none = nullptr;
  launch(rms_norm_, {out.size(0)}, 256, data(x), data(add), data(weight), none, data(out),
         data(scales));
}

void ModelKernels::quantise(const at::Tensor& x, at::Tensor& out, at::Tensor& scales) const {
  launch(quantise_, {x.size(0)}, 256, data(x), static_cast<int>(x.size(1)), data(out),
         data(scales));
}

void ModelKernels::norm_heads(at::Tensor& qkv, const at::Tensor& query,
                              const at::Tensor& key) const {
  const int64_t heads = qkv.size(0) * (model_.num_heads + model_.num_kv_heads);
  launch(norm_heads_, {(heads + 7) / 8}, 256, data(qkv), data(query), data(key), qkv.size(0));
}

void ModelKernels::rotate_and_store(at::Tensor& qkv, const at::Tensor& bias, const RopeTable& rope,
                                    const RowIndex& index, const at::Tensor& keys,
                                    const at::Tensor& values) const {
  launch(rotate_and_store_, {qkv.size(0), 2}, 256, data(qkv), data(bias), data(keys), data(values),
         data(rope.cosine), data(rope.sine), data(index.positions), data(index.slots));
}

void ModelKernels::silu_times_up(const at::Tensor& gate_up, at::Tensor& out,
                                 const at::Tensor& scales) const {
  if (scales.defined()) {
    launch(quantised_silu_times_up_, {out.size(0)}, 512, data(gate_up), data(out), data(scales));
  } else {
    const int width = static_cast<int>(out.size(1));
    launch(silu_times_up_, {out.size(0), (width / 8 + 255) / 256}, 256, data(gate_up), width,
           data(out));
  }
}

bool ModelKernels::suits(const std::vector<AttentionSequence>& sequences) const {
  int64_t longest = 0, pairs = 0;
  for (const AttentionSequence& sequence : sequences) {
    longest = std::max(longest, sequence.num_rows);
    pairs += sequence.num_rows * sequence.num_keys;
  }
  const int64_t products = 2 * pairs * model_.num_heads * model_.head_size;
  return longest <= kMaxTiledRows || products <= kLittleAttention;
}

void ModelKernels::attend(const at::Tensor& queries, const at::Tensor& keys,
                          const at::Tensor& values, const at::Tensor& tiles,
                          at::Tensor& out) const {
  const int64_t count = tiles.size(0), heads = model_.num_heads;
  const int64_t splits =
      count == 0 ? 1 : std::clamp<int64_t>(max_blocks_ / (count * heads), 1, kMaxSplits);
  const int64_t stride = queries.stride(0);
  launch(attend_, {count, heads, splits}, 128, data(queries), stride, data(keys), data(values),
         data(tiles), data(out), data(partial_), data(arrived_));
}

void ModelKernels::make_expert_buffers(const at::TensorOptions& options) {
  const ExpertsConfig& experts = model_.experts;
  const int64_t count = experts.num_experts, chosen = experts.num_chosen;
  max_expert_rows_ = static_cast<int64_t>(
      std::bit_floor(static_cast<uint64_t>(kMaxRowsPerExpert * count / chosen)));
  const int64_t rows = max_expert_rows_, taken = experts.num_taken(), pairs = rows * taken;
  const auto make = [&](at::IntArrayRef sizes, at::ScalarType dtype) {
    return at::empty(sizes, options.dtype(dtype));
  };
  buffers_ = {make({rows, count}, at::kFloat),
              make({rows, taken}, at::kInt),
              make({rows, taken}, at::kFloat),
              make({pairs}, at::kInt),
              make({num_tiles(pairs), 4}, at::kInt),
              make({pairs, experts.size}, options.dtype().toScalarType()),
              make({pairs, model_.hidden_size}, options.dtype().toScalarType())};
}

/// Of up to 32 places each, whatever the experts of so many pairs.
int64_t ModelKernels::num_tiles(int64_t pairs) const {
  const int64_t experts = int64_t{model_.experts.num_experts} + model_.experts.num_shared();
  return std::min(experts, pairs) + pairs / kTileRows;
}

void ModelKernels::add_experts(const at::Tensor& x, const Experts& experts, const at::Tensor& slots,
                               at::Tensor& out) const {
  const ExpertsConfig& config = model_.experts;
  const ExpertBuffers& b = buffers_;
  const int rows = static_cast<int>(x.size(0)), pairs = rows * config.num_taken();
  const int d = model_.hidden_size, width = config.size;
  const auto tiles = static_cast<int>(num_tiles(pairs));
  launch(router_logits_, {(config.num_experts + 7) / 8, (rows + 3) / 4}, 256, data(x),
         data(experts.router), rows, data(b.logits));
  launch(choose_experts_, {(rows + 7) / 8}, 256, data(b.logits), data(experts.router_bias),
         data(slots), rows, data(b.experts), data(b.weights));
  launch(sort_pairs_, {1}, 1024, data(b.experts), pairs, tiles, data(b.sorted), data(b.tiles));
  launch(multiply_by_expert_, {(width + 63) / 64, tiles}, 128, data(experts.gate_up.weight),
         data(experts.gate_up.scale), width, d, 1, data(x), data(b.sorted), data(b.tiles),
         data(b.activated));
  launch(multiply_by_expert_, {(d + 127) / 128, tiles}, 128, data(experts.down.weight),
         data(experts.down.scale), d, width, 0, data(b.activated), data(b.sorted), data(b.tiles),
         data(b.results));
  launch(add_weighted_, {rows}, 256, data(b.results), data(b.experts), data(b.weights), data(out));
}

void ModelKernels::row_statistics(const at::Tensor& logits, at::Tensor& out) const {
  launch(row_statistics_, {logits.size(0)}, 512, data(logits), data(out));
}

void ModelKernels::draw(const at::Tensor& logits, const std::vector<DrawnRow>& rows,
                        at::Tensor& statistics) const {
  static_assert(sizeof(DrawnRow) == 32);
  if (rows.empty()) return;
  const auto count = static_cast<int64_t>(rows.size());
  // libtorch keeps the host's buffer until the copy has read it, and nobody waits.
  const at::Tensor host = at::empty({count, 8}, at::dtype(at::kInt).pinned_memory(true));
  std::memcpy(host.mutable_data_ptr(), rows.data(), rows.size() * sizeof(DrawnRow));
  const at::Tensor asked = host.to(logits.device(), at::kInt, /*non_blocking=*/true);
  launch(draw_, {count}, 512, data(logits), data(asked), data(statistics));
}

}  // namespace bicached
