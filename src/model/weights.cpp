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

/// Whether `weights: fp8` holds it in float8: the matrices of layers, but for routers.
bool is_quantisable(const TensorSpec& spec) {
  return spec.layer >= 0 && spec.shape.size() == 2 && spec.role != TensorRole::kRouter;
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

/// Some of its rows in pieces that are small beside a model: `use` gets the number of the first,
/// counted from `begin`, and the piece, on the host and of the stored type.
template <typename Use>
void for_each_piece(const StoredTensor& stored, int64_t begin, int64_t num_rows, Use use) {
  constexpr int64_t kPieceBytes = 8 << 20;  // read again and again into the same memory
  Shape shape = stored.shape;
  const int64_t row_bytes =
      static_cast<int64_t>(stored.num_bytes) / std::max<int64_t>(shape.front(), 1);
  const int64_t most_rows = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(row_bytes, 1));
  for (int64_t row = 0; row < num_rows; row += most_rows) {
    shape.front() = std::min(most_rows, num_rows - row);
    const at::Tensor piece = at::empty(shape, at::dtype(scalar_type(stored.dtype)));
    read_rows(stored, begin + row, piece);
    use(row, piece);
  }
}

/// Where a tensor, or a part of one, goes: part of a matrix, and of its scales where it is float8.
struct Place {
  at::Tensor values;            // room for more than there is is filled up with zeros
  at::Tensor scales;            // [rows]
  int64_t row = 0, column = 0;  // of the tensor, where the part begins
};

Place rows_of(const Linear& linear, int64_t begin, int64_t count, int64_t matrix = 0) {
  const bool is_one = linear.weight.dim() == 2;
  const at::Tensor weight = is_one ? linear.weight : linear.weight.select(0, matrix);
  Place place{weight.narrow(0, begin, count), {}};
  if (linear.is_quantised()) place.scales = linear.scale.select(0, matrix).narrow(0, begin, count);
  return place;
}

/// Where a matrix of an expert goes, or of the shared MLP, which is some experts: the first ones.
std::vector<Place> places_of_expert(const Experts& experts, const ExpertsConfig& config,
                                    const TensorSpec& spec) {
  const bool is_shared = spec.expert < 0;
  const bool is_down = spec.role == TensorRole::kExpertDown || spec.role == TensorRole::kSharedDown;
  const bool is_up = spec.role == TensorRole::kExpertUp || spec.role == TensorRole::kSharedUp;
  const int64_t width = config.size;
  std::vector<Place> places;
  for (int64_t part = 0; part < (is_shared ? config.num_shared() : 1); ++part) {
    const int64_t expert = is_shared ? part : config.num_shared() + spec.expert;
    places.push_back(is_down ? rows_of(experts.down, 0, experts.down.weight.size(1), expert)
                             : rows_of(experts.gate_up, is_up ? width : 0, width, expert));
    (is_down ? places.back().column : places.back().row) = part * width;
  }
  return places;
}

std::vector<Place> places_in(const LayerWeights& layer, const ModelConfig& config,
                             const TensorSpec& spec) {
  const int64_t query = int64_t{config.num_heads} * config.head_size;
  const int64_t kv = int64_t{config.num_kv_heads} * config.head_size;
  const int64_t mlp = config.mlp_size;
  const auto whole = [](const at::Tensor& values) { return std::vector<Place>{{values, {}}}; };
  switch (spec.role) {
    case TensorRole::kAttentionNorm: return whole(layer.attention_norm);
    case TensorRole::kQkv: return {rows_of(layer.qkv, 0, query + 2 * kv)};
    case TensorRole::kQuery: return {rows_of(layer.qkv, 0, query)};
    case TensorRole::kKey: return {rows_of(layer.qkv, query, kv)};
    case TensorRole::kValue: return {rows_of(layer.qkv, query + kv, kv)};
    case TensorRole::kQueryBias: return whole(layer.qkv.bias.narrow(0, 0, query));
    case TensorRole::kKeyBias: return whole(layer.qkv.bias.narrow(0, query, kv));
    case TensorRole::kValueBias: return whole(layer.qkv.bias.narrow(0, query + kv, kv));
    case TensorRole::kQueryNorm: return whole(layer.query_norm);
    case TensorRole::kKeyNorm: return whole(layer.key_norm);
    case TensorRole::kAttentionOut: return {rows_of(layer.attention_out, 0, config.hidden_size)};
    case TensorRole::kMlpNorm: return whole(layer.mlp_norm);
    case TensorRole::kGate: return {rows_of(layer.mlp->gate_up, 0, mlp)};
    case TensorRole::kUp: return {rows_of(layer.mlp->gate_up, mlp, mlp)};
    case TensorRole::kDown: return {rows_of(layer.mlp->down, 0, config.hidden_size)};
    case TensorRole::kRouter: return whole(layer.experts->router);
    case TensorRole::kRouterBias: return whole(layer.experts->router_bias);
    case TensorRole::kSharedGate:
    case TensorRole::kSharedUp:
    case TensorRole::kSharedDown:
    case TensorRole::kExpertGate:
    case TensorRole::kExpertUp:
    case TensorRole::kExpertDown: return places_of_expert(*layer.experts, config.experts, spec);
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

/// The scales of a float8 matrix as a column, or one for all.
at::Tensor read_scale(const StoredTensor& stored) {
  Shape shape = stored.shape;
  if (shape.empty()) shape = {1};
  const at::Tensor scale = at::empty(shape, at::dtype(scalar_type(stored.dtype)));
  read_rows(stored, 0, scale);
  return scale.to(at::kFloat).reshape({-1, 1});
}

/// Converts on the way. What is stored in float8 stays as it is where its place is float8.
void put(const Checkpoint& checkpoint, const TensorSpec& spec, at::ScalarType dtype, Place place) {
  const StoredTensor& stored = find(checkpoint, spec);
  const bool is_float8 = stored.dtype == kFloat8;
  const Shape& shape = spec.shape;
  const bool is_vector = shape.size() == 1;
  const int64_t rows = std::min(place.values.size(0), shape[0] - place.row);
  const int64_t columns = is_vector ? 1 : std::min(place.values.size(1), shape[1] - place.column);
  if (!is_vector && place.values.numel() > rows * columns) {
    place.values.zero_();
    place.values = place.values.narrow(0, 0, rows).narrow(1, 0, columns);
    if (place.scales.defined()) place.scales = place.scales.zero_().narrow(0, 0, rows);
  }
  const at::Tensor& values = place.values;
  const bool takes_all_columns = is_vector || columns == shape[1];
  if (takes_all_columns && !place.scales.defined() && values.device().is_cpu() &&
      values.is_contiguous() && values.scalar_type() == scalar_type(stored.dtype)) {
    return read_rows(stored, place.row, values);
  }
  at::Tensor scale;
  if (is_float8) scale = read_scale(find_scale(checkpoint, spec)).expand({shape[0], 1});
  for_each_piece(stored, place.row, rows, [&](int64_t begin, at::Tensor piece) {
    if (!takes_all_columns) piece = piece.narrow(1, place.column, columns);
    const int64_t count = piece.size(0);
    const at::Tensor to = values.narrow(0, begin, count);
    Linear linear{piece, {}, {}};
    if (is_float8) linear.scale = scale.narrow(0, place.row + begin, count);
    if (!place.scales.defined()) {
      to.copy_(is_float8 ? piece.to(at::kFloat).mul(linear.scale) : piece);
      return;
    }
    if (!is_float8) linear = quantised(piece.to(values.device(), dtype));
    to.view(at::kByte).copy_(linear.weight.view(at::kByte));
    place.scales.narrow(0, begin, count).copy_(linear.scale.view({-1}));
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
    std::vector<Place> places;
    if (spec.layer < 0) {
      const at::Tensor values = at::empty(spec.shape, options);
      if (spec.role == TensorRole::kEmbedding) weights.embedding = values;
      if (spec.role == TensorRole::kFinalNorm) weights.final_norm = values;
      if (spec.role == TensorRole::kHead) weights.head = values;
      places = {{values, {}}};
    } else {
      if (spec.layer == static_cast<int>(weights.layers.size())) {
        weights.layers.push_back(maker.make(spec.layer));
      }
      places = places_in(weights.layers.back(), config, spec);
    }
    for (const Place& place : places) put(checkpoint, spec, dtype, place);
    done_bytes += static_cast<int64_t>(find(checkpoint, spec).num_bytes);
    if (progress) progress(done_bytes, checkpoint.total_bytes());
  }
  if (config.tied_head) weights.head = weights.embedding;
  return weights;
}

}  // namespace bicached
