#include "model/weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

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

/// Whether `weights: fp8` holds it in float8: the matrices of layers, but for routers.
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
    case TensorRole::kSharedDown:
    case TensorRole::kExpertGate:
    case TensorRole::kExpertUp:
    case TensorRole::kExpertDown: return true;
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

/// On the host, without a copy.
at::Tensor tensor_of(const StoredTensor& stored) {
  // from_blob takes no const; the mapping is read-only and nobody writes to the result.
  void* data = const_cast<std::byte*>(stored.bytes.data());
  return at::from_blob(data, stored.shape, at::dtype(scalar_type(stored.dtype)));
}

/// The place of a tensor among the weights: part of a matrix, and of its scales where it is float8.
struct Place {
  at::Tensor values;
  at::Tensor scales;
  Shape matrix;  // [out, in] that `values` have room for; empty: the tensor's own shape
};

Place rows_of(const Linear& linear, int64_t begin, int64_t count) {
  Place place{linear.weight.narrow(0, begin, count), {}};
  if (linear.is_quantised()) place.scales = linear.scale.narrow(1, begin, count);
  return place;
}

/// Where a matrix of an expert goes, or of the shared MLP, which is some experts: the first ones.
Place place_of_expert(const Experts& experts, const ExpertsConfig& config, const TensorSpec& spec) {
  const bool is_shared = spec.expert < 0;
  const int64_t first = is_shared ? 0 : config.num_shared() + spec.expert;
  const int64_t count = is_shared ? config.num_shared() : 1, width = config.size;
  const bool is_down = spec.role == TensorRole::kExpertDown || spec.role == TensorRole::kSharedDown;
  const bool is_up = spec.role == TensorRole::kExpertUp || spec.role == TensorRole::kSharedUp;
  const Linear& all = is_down ? experts.down : experts.gate_up;
  const int64_t rows = is_down ? all.weight.size(1) : width;
  const auto part = [&](const at::Tensor& of_all) {
    return of_all.narrow(0, first, count).narrow(1, is_up ? width : 0, rows);
  };
  Place place{part(all.weight), {}, {count * rows, all.weight.size(2)}};
  if (all.is_quantised()) place.scales = part(all.scale);
  if (is_down) {  // side by side, not one below the other
    place.values = place.values.transpose(0, 1);
    place.matrix = {rows, count * width};
  }
  return place;
}

Place place_in(const LayerWeights& layer, const ModelConfig& config, const TensorSpec& spec) {
  const int64_t query = int64_t{config.num_heads} * config.head_size;
  const int64_t kv = int64_t{config.num_kv_heads} * config.head_size;
  const int64_t mlp = config.mlp_size;
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
    case TensorRole::kGate: return rows_of(layer.mlp->gate_up, 0, mlp);
    case TensorRole::kUp: return rows_of(layer.mlp->gate_up, mlp, mlp);
    case TensorRole::kDown: return rows_of(layer.mlp->down, 0, config.hidden_size);
    case TensorRole::kRouter: return {layer.experts->router, {}};
    case TensorRole::kRouterBias: return {layer.experts->router_bias, {}};
    case TensorRole::kSharedGate:
    case TensorRole::kSharedUp:
    case TensorRole::kSharedDown:
    case TensorRole::kExpertGate:
    case TensorRole::kExpertUp:
    case TensorRole::kExpertDown: return place_of_expert(*layer.experts, config.experts, spec);
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
    made.qkv = linear({qkv, d});
    if (config_.qkv_bias) made.qkv.bias = empty({qkv});
    if (config_.qk_norm) {
      made.query_norm = empty({config_.head_size});
      made.key_norm = empty({config_.head_size});
    }
    made.attention_out = linear({d, query});
    made.mlp_norm = empty({d});
    if (config_.is_sparse(layer)) {
      made.experts = experts();
    } else {
      made.mlp = Mlp{linear({2 * int64_t{config_.mlp_size}, d}), linear({d, config_.mlp_size})};
    }
    return made;
  }

 private:
  at::Tensor empty(const Shape& shape) const { return at::empty(shape, options_); }
  /// One matrix [out, in], or one of each expert.
  Linear linear(const Shape& shape) const {
    if (!fp8_) return {empty(shape), {}, {}};
    const int64_t matrices = shape.size() == 2 ? 1 : shape.front();
    return {at::empty(shape, options_.dtype(at::kFloat8_e4m3fn)),
            {},
            at::empty({matrices, shape[shape.size() - 2]}, options_.dtype(at::kFloat))};
  }
  Experts experts() const {
    const ExpertsConfig& e = config_.experts;
    const int64_t d = config_.hidden_size, n = e.num_experts, m = e.size, all = n + e.num_shared();
    Experts made{at::empty({n, d}, options_.dtype(at::kFloat)),
                 {},
                 linear({all, 2 * m, d}),
                 linear({all, d, m})};
    if (e.router_bias != RouterBias::kNone) {
      made.router_bias = at::empty({n}, options_.dtype(at::kFloat));
    }
    return made;
  }

  const ModelConfig& config_;
  const at::TensorOptions options_;
  const bool fp8_;
};

/// With zeros below and beside it.
at::Tensor filled_up(const at::Tensor& matrix, const Shape& shape) {
  if (matrix.sizes() == at::IntArrayRef(shape)) return matrix;
  at::Tensor whole = at::zeros(shape, matrix.options());
  whole.narrow(0, 0, matrix.size(0)).narrow(1, 0, matrix.size(1)).copy_(matrix);
  return whole;
}

/// Converts on the way. What is stored in float8 stays as it is where its place is float8.
void put(const Checkpoint& checkpoint, const TensorSpec& spec, at::ScalarType dtype,
         const Place& place) {
  at::Tensor stored = tensor_of(find(checkpoint, spec));
  const bool is_float8 = stored.scalar_type() == at::kFloat8_e4m3fn;
  at::Tensor scale;
  if (is_float8) {
    scale = tensor_of(find_scale(checkpoint, spec)).to(at::kFloat).reshape({-1, 1});
  }
  if (!place.matrix.empty()) {
    stored = filled_up(stored, place.matrix);
    if (is_float8) scale = filled_up(scale.expand({spec.shape[0], 1}), {place.matrix[0], 1});
  }
  const auto shaped = [&](const at::Tensor& values) { return values.view(place.values.sizes()); };
  if (!place.scales.defined()) {
    place.values.copy_(shaped(is_float8 ? stored.to(at::kFloat).mul(scale) : stored));
    return;
  }
  Linear linear{stored, {}, scale};
  if (!is_float8) linear = quantised(stored.to(place.values.device(), dtype));
  place.values.view(at::kByte).copy_(shaped(linear.weight).view(at::kByte));
  // A row has one scale, whatever number of places its columns are in.
  const bool has_each = linear.scale.numel() == place.scales.numel();
  place.scales.copy_(has_each ? linear.scale.view(place.scales.sizes())
                              : linear.scale.view({1, -1}).expand_as(place.scales));
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
    done_bytes += static_cast<int64_t>(find(checkpoint, spec).bytes.size());
    if (progress) progress(done_bytes, checkpoint.total_bytes());
  }
  if (config.tied_head) weights.head = weights.embedding;
  return weights;
}

}  // namespace bicached
