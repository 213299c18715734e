#include "model/weights.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>

#include <set>

#include "bicached/error.h"

namespace bicached {
namespace {

using Shape = std::vector<int64_t>;

std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (const int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

/// Tensors by role, checked against name and shape on the way.
class TensorTable {
 public:
  TensorTable(const Checkpoint& checkpoint, const ParsedModel& model)
      : checkpoint_(checkpoint), model_(model) {}

  const StoredTensor& find(TensorRole role, int layer) const {
    const std::string name = model_.family->tensor_name(role, layer);
    const auto it = checkpoint_.tensors().find(name);
    if (it == checkpoint_.tensors().end()) {
      throw Error(ErrorCode::kInvalidModel, "the checkpoint has no tensor '" + name + "'");
    }
    const Shape expected = shape_of(role);
    if (it->second.shape != expected) {
      throw Error(ErrorCode::kInvalidModel, "tensor '" + name + "' has shape " +
                                                text_of(it->second.shape) + "; config.json needs " +
                                                text_of(expected));
    }
    return it->second;
  }

  std::vector<TensorRole> roles_of_layer() const {
    std::vector<TensorRole> roles{
        TensorRole::kAttentionNorm, TensorRole::kQuery,        TensorRole::kKey,
        TensorRole::kValue,         TensorRole::kAttentionOut, TensorRole::kMlpNorm,
        TensorRole::kGate,          TensorRole::kUp,           TensorRole::kDown};
    if (model_.config.qkv_bias) {
      roles.insert(roles.end(),
                   {TensorRole::kQueryBias, TensorRole::kKeyBias, TensorRole::kValueBias});
    }
    if (model_.config.qk_norm) {
      roles.insert(roles.end(), {TensorRole::kQueryNorm, TensorRole::kKeyNorm});
    }
    return roles;
  }

  std::vector<TensorRole> roles_of_model() const {
    std::vector<TensorRole> roles{TensorRole::kEmbedding, TensorRole::kFinalNorm};
    if (!model_.config.tied_head) roles.push_back(TensorRole::kHead);
    return roles;
  }

 private:
  Shape shape_of(TensorRole role) const {
    const ModelConfig& c = model_.config;
    const int64_t d = c.hidden_size, q = int64_t{c.num_heads} * c.head_size;
    const int64_t kv = int64_t{c.num_kv_heads} * c.head_size;
    switch (role) {
      case TensorRole::kEmbedding:
      case TensorRole::kHead: return {c.num_logits, d};
      case TensorRole::kFinalNorm:
      case TensorRole::kAttentionNorm:
      case TensorRole::kMlpNorm: return {d};
      case TensorRole::kQuery: return {q, d};
      case TensorRole::kKey:
      case TensorRole::kValue: return {kv, d};
      case TensorRole::kAttentionOut: return {d, q};
      case TensorRole::kGate:
      case TensorRole::kUp: return {c.mlp_size, d};
      case TensorRole::kDown: return {d, c.mlp_size};
      case TensorRole::kQueryBias: return {q};
      case TensorRole::kKeyBias:
      case TensorRole::kValueBias: return {kv};
      case TensorRole::kQueryNorm:
      case TensorRole::kKeyNorm: return {c.head_size};
    }
    return {};
  }

  const Checkpoint& checkpoint_;
  const ParsedModel& model_;
};

at::ScalarType scalar_type(const std::string& dtype) {
  if (dtype == "BF16") return at::kBFloat16;
  if (dtype == "F16") return at::kHalf;
  return at::kFloat;
}

}  // namespace

int64_t check_tensors(const Checkpoint& checkpoint, const ParsedModel& model) {
  const TensorTable table(checkpoint, model);
  std::set<std::string> expected;
  int64_t num_parameters = 0;
  const auto take = [&](TensorRole role, int layer) {
    int64_t count = 1;
    for (const int64_t n : table.find(role, layer).shape) count *= n;
    num_parameters += count;
    expected.insert(model.family->tensor_name(role, layer));
  };
  for (const TensorRole role : table.roles_of_model()) take(role, 0);
  for (int layer = 0; layer < model.config.num_layers; ++layer) {
    for (const TensorRole role : table.roles_of_layer()) take(role, layer);
  }
  // A tied model may still store its head.
  expected.insert(model.family->tensor_name(TensorRole::kHead, 0));
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (!expected.contains(name)) {
      throw Error(ErrorCode::kInvalidModel, "the checkpoint has a tensor '" + name +
                                                "' that a model of family " + model.family->name +
                                                " with this config.json has no place for");
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

int64_t weight_bytes(const ModelConfig& config, int64_t num_parameters, at::ScalarType dtype,
                     bool fp8) {
  const auto element = static_cast<int64_t>(c10::elementSize(dtype));
  if (!fp8) return num_parameters * element;
  const int64_t d = config.hidden_size, heads = config.num_heads, kv_heads = config.num_kv_heads;
  const int64_t rows = (heads + 2 * kv_heads) * config.head_size + 2 * int64_t{config.mlp_size};
  const int64_t columns = heads * config.head_size + int64_t{config.mlp_size};
  const int64_t quantised = config.num_layers * d * (rows + columns);
  const int64_t scales = config.num_layers * (rows + 2 * d) * static_cast<int64_t>(sizeof(float));
  return (num_parameters - quantised) * element + quantised + scales;
}

ModelWeights load_weights(const Checkpoint& checkpoint, const ParsedModel& model, at::Device device,
                          at::ScalarType dtype, bool fp8, const LoadProgress& progress) {
  const TensorTable table(checkpoint, model);
  ModelWeights weights;
  weights.num_parameters = check_tensors(checkpoint, model);
  int64_t done_bytes = 0;
  const auto place = [&](TensorRole role, int layer) {
    const StoredTensor& stored = table.find(role, layer);
    // from_blob takes no const; the mapping is read-only and `to` with copy only reads.
    void* data = const_cast<std::byte*>(stored.bytes.data());
    at::Tensor tensor = at::from_blob(data, stored.shape, at::dtype(scalar_type(stored.dtype)))
                            .to(device, dtype, /*non_blocking=*/false, /*copy=*/true);
    done_bytes += static_cast<int64_t>(stored.bytes.size());
    if (progress) progress(done_bytes, checkpoint.total_bytes());
    return tensor;
  };
  const auto linear = [&](at::Tensor weight) {
    return fp8 ? quantised(weight) : Linear{std::move(weight), {}, {}};
  };
  weights.embedding = place(TensorRole::kEmbedding, 0);
  weights.final_norm = place(TensorRole::kFinalNorm, 0);
  weights.head = model.config.tied_head ? weights.embedding : place(TensorRole::kHead, 0);
  for (int i = 0; i < model.config.num_layers; ++i) {
    LayerWeights layer;
    layer.attention_norm = place(TensorRole::kAttentionNorm, i);
    layer.qkv = linear(at::cat(
        {place(TensorRole::kQuery, i), place(TensorRole::kKey, i), place(TensorRole::kValue, i)}));
    if (model.config.qkv_bias) {
      layer.qkv.bias = at::cat({place(TensorRole::kQueryBias, i), place(TensorRole::kKeyBias, i),
                                place(TensorRole::kValueBias, i)});
    }
    if (model.config.qk_norm) {
      layer.query_norm = place(TensorRole::kQueryNorm, i);
      layer.key_norm = place(TensorRole::kKeyNorm, i);
    }
    layer.attention_out = linear(place(TensorRole::kAttentionOut, i));
    layer.mlp_norm = place(TensorRole::kMlpNorm, i);
    layer.gate_up = linear(at::cat({place(TensorRole::kGate, i), place(TensorRole::kUp, i)}));
    layer.down = linear(place(TensorRole::kDown, i));
    weights.layers.push_back(std::move(layer));
  }
  return weights;
}

}  // namespace bicached
