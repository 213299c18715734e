#include "model/weights.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <set>

#include "bicached/error.h"
#include "model/tensor_list.h"

namespace bicached {
namespace {

using Shape = std::vector<int64_t>;

[[noreturn]] void refuse(const std::string& why) { throw Error(ErrorCode::kInvalidModel, why); }

std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (const int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

/// Whether `weights: fp8` holds it in float8: the matrices of layers that are one `Linear`.
bool is_quantisable(const TensorSpec& spec) {
  switch (spec.role) {
    case TensorRole::kQkv:
    case TensorRole::kQuery:
    case TensorRole::kKey:
    case TensorRole::kValue:
    case TensorRole::kAttentionOut:
    case TensorRole::kGate:
    case TensorRole::kUp:
    case TensorRole::kDown:
    case TensorRole::kSharedGate:
    case TensorRole::kSharedUp:
    case TensorRole::kSharedDown: return true;
    default: return false;
  }
}

/// Where compressed-tensors keeps the scale of a float8 matrix: a value a row, or one for all.
std::string scale_name(const std::string& name) { return name + "_scale"; }

const StoredTensor& find(const Checkpoint& checkpoint, const TensorSpec& spec) {
  const auto it = checkpoint.tensors().find(checkpoint.stored_name(spec.name));
  if (it->second.shape != spec.shape) {
    refuse("tensor '" + spec.name + "' has shape " + text_of(it->second.shape) +
           "; config.json needs " + text_of(spec.shape));
  }
  return it->second;
}

const StoredTensor& find_scale(const Checkpoint& checkpoint, const TensorSpec& spec) {
  const std::string name = scale_name(checkpoint.stored_name(spec.name));
  const auto it = checkpoint.tensors().find(name);
  if (it == checkpoint.tensors().end()) {
    refuse("tensor '" + spec.name + "' is float8, but the checkpoint has no '" + name +
           "', its scale");
  }
  const int64_t rows = spec.shape.front();
  const Shape& shape = it->second.shape;
  if (it->second.dtype == kFloat8 ||
      (shape != Shape{rows, 1} && shape != Shape{rows} && shape != Shape{1} && !shape.empty())) {
    refuse("tensor '" + name + "' has dtype " + it->second.dtype + " and shape " + text_of(shape) +
           "; a scale is F32, BF16 or F16 of shape [" + std::to_string(rows) + ", 1] or [1]");
  }
  return it->second;
}

at::ScalarType scalar_type(const std::string& dtype) {
  if (dtype == "BF16") return at::kBFloat16;
  if (dtype == "F16") return at::kHalf;
  if (dtype == kFloat8) return at::kFloat8_e4m3fn;
  return at::kFloat;
}

/// Rows of a tensor into memory of the host, which is contiguous.
void read_rows(const StoredTensor& stored, int64_t begin, const at::Tensor& to) {
  const auto num_bytes = static_cast<size_t>(to.nbytes());
  const auto row_bytes = num_bytes / static_cast<size_t>(std::max<int64_t>(to.size(0), 1));
  stored.read(static_cast<size_t>(begin) * row_bytes,
              {static_cast<std::byte*>(to.mutable_data_ptr()), num_bytes});
}

/// Its rows in pieces that are small beside a model: `use` gets the first row's number and the
/// piece, on the host and of the stored type.
template <typename Use>
void for_each_piece(const StoredTensor& stored, Use use) {
  constexpr int64_t kPieceBytes = 8 << 20;  // read again and again into the same memory
  Shape shape = stored.shape;
  if (shape.empty()) shape = {1};
  const int64_t num_rows = shape.front();
  const int64_t row_bytes = static_cast<int64_t>(stored.num_bytes) / std::max<int64_t>(num_rows, 1);
  const int64_t most_rows = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(row_bytes, 1));
  for (int64_t row = 0; row < num_rows; row += most_rows) {
    shape.front() = std::min(most_rows, num_rows - row);
    const at::Tensor piece = at::empty(shape, at::dtype(scalar_type(stored.dtype)));
    read_rows(stored, row, piece);
    use(row, piece);
  }
}

/// The place of a tensor among the weights: part of a matrix, and of its scales where it is float8.
struct Place {
  at::Tensor values;
  at::Tensor scales;  // [1, rows]
};

Place rows_of(const Linear& linear, int64_t begin, int64_t count) {
  Place place{linear.weight.narrow(0, begin, count), {}};
  if (linear.is_quantised()) place.scales = linear.scale.narrow(1, begin, count);
  return place;
}

Place place_in(const LayerWeights& layer, const ModelConfig& config, const TensorSpec& spec) {
  const int64_t query = int64_t{config.num_heads} * config.head_size;
  const int64_t kv = int64_t{config.num_kv_heads} * config.head_size;
  const int64_t mlp = config.dense_size(spec.layer), expert = config.experts.size;
  const auto of_expert = [&](const at::Tensor& all) { return all.select(0, spec.expert); };
  switch (spec.role) {
    case TensorRole::kAttentionNorm: return {layer.attention_norm, {}};
    case TensorRole::kQkv: return rows_of(layer.qkv, 0, query + 2 * kv);
    case TensorRole::kQuery: return rows_of(layer.qkv, 0, query);
    case TensorRole::kKey: return rows_of(layer.qkv, query, kv);
    case TensorRole::kValue: return rows_of(layer.qkv, query + kv, kv);
    case TensorRole::kQueryBias: return {layer.qkv.bias.narrow(0, 0, query), {}};
    case TensorRole::kKeyBias: return {layer.qkv.bias.narrow(0, query, kv), {}};
    case TensorRole::kValueBias: return {layer.qkv.bias.narrow(0, query + kv, kv), {}};
    case TensorRole::kQueryNorm: return {layer.query_norm, {}};
    case TensorRole::kKeyNorm: return {layer.key_norm, {}};
    case TensorRole::kAttentionOut: return rows_of(layer.attention_out, 0, config.hidden_size);
    case TensorRole::kMlpNorm: return {layer.mlp_norm, {}};
    case TensorRole::kGate:
    case TensorRole::kSharedGate: return rows_of(layer.mlp->gate_up, 0, mlp);
    case TensorRole::kUp:
    case TensorRole::kSharedUp: return rows_of(layer.mlp->gate_up, mlp, mlp);
    case TensorRole::kDown:
    case TensorRole::kSharedDown: return rows_of(layer.mlp->down, 0, config.hidden_size);
    case TensorRole::kRouter: return {layer.experts->router, {}};
    case TensorRole::kRouterBias: return {layer.experts->router_bias, {}};
    case TensorRole::kExpertGate:
      return {of_expert(layer.experts->gate_up).narrow(0, 0, expert), {}};
    case TensorRole::kExpertUp:
      return {of_expert(layer.experts->gate_up).narrow(0, expert, expert), {}};
    case TensorRole::kExpertDown: return {of_expert(layer.experts->down), {}};
    case TensorRole::kEmbedding:
    case TensorRole::kFinalNorm:
    case TensorRole::kHead: break;
  }
  return {};
}

/// A layer's parts in their shapes, to be filled.
class LayerMaker {
 public:
  LayerMaker(const ModelConfig& config, const at::TensorOptions& options, bool fp8)
      : config_(config), options_(options), fp8_(fp8) {}

  LayerWeights make(int layer) const {
    const int64_t d = config_.hidden_size, query = int64_t{config_.num_heads} * config_.head_size;
    const int64_t qkv = query + 2 * int64_t{config_.num_kv_heads} * config_.head_size;
    LayerWeights made;
    made.attention_norm = empty({d});
    made.qkv = linear(qkv, d);
    if (config_.qkv_bias) made.qkv.bias = empty({qkv});
    if (config_.qk_norm) {
      made.query_norm = empty({config_.head_size});
      made.key_norm = empty({config_.head_size});
    }
    made.attention_out = linear(d, query);
    made.mlp_norm = empty({d});
    if (const int64_t size = config_.dense_size(layer); size > 0) {
      made.mlp = Mlp{linear(2 * size, d), linear(d, size)};
    }
    if (config_.is_sparse(layer)) made.experts = experts();
    return made;
  }

 private:
  at::Tensor empty(const Shape& shape) const { return at::empty(shape, options_); }
  Linear linear(int64_t out, int64_t in) const {
    if (!fp8_) return {empty({out, in}), {}, {}};
    return {at::empty({out, in}, options_.dtype(at::kFloat8_e4m3fn)),
            {},
            at::empty({1, out}, options_.dtype(at::kFloat))};
  }
  Experts experts() const {
    const ExpertsConfig& e = config_.experts;
    const int64_t d = config_.hidden_size, n = e.num_experts, m = e.size;
    Experts made{
        at::empty({n, d}, options_.dtype(at::kFloat)), {}, empty({n, 2 * m, d}), empty({n, d, m})};
    if (e.router_bias != RouterBias::kNone) {
      made.router_bias = at::empty({n}, options_.dtype(at::kFloat));
    }
    return made;
  }

  const ModelConfig& config_;
  const at::TensorOptions options_;
  const bool fp8_;
};

/// The scales of a float8 matrix as a column, or one for all.
at::Tensor read_scale(const StoredTensor& stored) {
  Shape shape = stored.shape;
  if (shape.empty()) shape = {1};
  const at::Tensor scale = at::empty(shape, at::dtype(scalar_type(stored.dtype)));
  read_rows(stored, 0, scale);
  return scale.to(at::kFloat).reshape({-1, 1});
}

/// Converts on the way. What is stored in float8 stays as it is where its place is float8.
void put(const Checkpoint& checkpoint, const TensorSpec& spec, at::ScalarType dtype,
         const Place& place) {
  const StoredTensor& stored = find(checkpoint, spec);
  const bool is_float8 = stored.dtype == kFloat8;
  const at::Tensor& values = place.values;
  if (!place.scales.defined() && values.device().is_cpu() && values.is_contiguous() &&
      values.scalar_type() == scalar_type(stored.dtype)) {
    return read_rows(stored, 0, values);
  }
  at::Tensor scale;
  if (is_float8) scale = read_scale(find_scale(checkpoint, spec)).expand({spec.shape.front(), 1});
  for_each_piece(stored, [&](int64_t begin, const at::Tensor& piece) {
    const int64_t count = piece.size(0);
    const at::Tensor to = values.narrow(0, begin, count);
    const at::Tensor factors = is_float8 ? scale.narrow(0, begin, count) : at::Tensor();
    if (!place.scales.defined()) {
      to.copy_(is_float8 ? piece.to(at::kFloat).mul(factors) : piece);
      return;
    }
    const at::Tensor scales = place.scales.narrow(1, begin, count);
    if (is_float8) {
      to.view(at::kByte).copy_(piece.view(at::kByte));
      scales.copy_(factors.t());
    } else {
      const Linear linear = quantised(piece.to(values.device(), dtype));
      to.view(at::kByte).copy_(linear.weight.view(at::kByte));
      scales.copy_(linear.scale);
    }
  });
}

}  // namespace

int64_t check_tensors(const Checkpoint& checkpoint, const ParsedModel& model) {
  std::set<std::string> expected;
  int64_t num_parameters = 0;
  for (const TensorSpec& spec : list_tensors(model)) {
    num_parameters += spec.num_elements();
    expected.insert(checkpoint.stored_name(spec.name));
    if (find(checkpoint, spec).dtype != kFloat8) continue;
    if (spec.shape.size() != 2) refuse("tensor '" + spec.name + "' is float8, but no matrix");
    find_scale(checkpoint, spec);
    expected.insert(scale_name(checkpoint.stored_name(spec.name)));
  }
  // A tied model may still store its head.
  for (const auto& [role, name] : *model.family->tensor_names) {
    if (role == TensorRole::kHead) expected.merge(Checkpoint::name_forms(name));
  }
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (!expected.contains(name)) {
      refuse("the checkpoint has a tensor '" + name + "' that a model of family " +
             model.family->name + " with this config.json has no place for");
    }
  }
  return num_parameters;
}

Linear quantised(const at::Tensor& weight) {
  constexpr double kGreatest = 448, kLeast = 1e-6;  // a row of zeros has a scale, too
  const at::Tensor wide = weight.to(at::kFloat);
  const at::Tensor scale = wide.abs().amax(1, /*keepdim=*/true).clamp_min(kLeast).div(kGreatest);
  return {wide.div(scale).to(at::kFloat8_e4m3fn), {}, scale.view({1, -1})};
}

int64_t weight_bytes(const ParsedModel& model, at::ScalarType dtype, bool fp8) {
  int64_t bytes = 0;
  for (const TensorSpec& spec : list_tensors(model)) {
    const bool is_router = spec.role == TensorRole::kRouter || spec.role == TensorRole::kRouterBias;
    if (fp8 && is_quantisable(spec)) {
      bytes += spec.num_elements() + spec.shape.front() * static_cast<int64_t>(sizeof(float));
    } else {
      const auto element = c10::elementSize(is_router ? at::kFloat : dtype);
      bytes += spec.num_elements() * static_cast<int64_t>(element);
    }
  }
  return bytes;
}

ModelWeights load_weights(const Checkpoint& checkpoint, const ParsedModel& model, at::Device device,
                          at::ScalarType dtype, bool fp8, const LoadProgress& progress) {
  const ModelConfig& config = model.config;
  const auto options = at::TensorOptions().device(device).dtype(dtype);
  const LayerMaker maker(config, options, fp8);
  ModelWeights weights;
  weights.num_parameters = check_tensors(checkpoint, model);
  int64_t done_bytes = 0;
  for (const TensorSpec& spec : list_tensors(model)) {
    Place place;
    if (spec.layer < 0) {
      place.values = at::empty(spec.shape, options);
      if (spec.role == TensorRole::kEmbedding) weights.embedding = place.values;
      if (spec.role == TensorRole::kFinalNorm) weights.final_norm = place.values;
      if (spec.role == TensorRole::kHead) weights.head = place.values;
    } else {
      if (spec.layer == static_cast<int>(weights.layers.size())) {
        weights.layers.push_back(maker.make(spec.layer));
      }
      place = place_in(weights.layers.back(), config, spec);
    }
    put(checkpoint, spec, dtype, place);
    done_bytes += static_cast<int64_t>(find(checkpoint, spec).num_bytes);
    if (progress) progress(done_bytes, checkpoint.total_bytes());
  }
  if (config.tied_head) weights.head = weights.embedding;
  return weights;
}

}  // namespace bicached
