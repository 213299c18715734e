#include "model/tensor_list.h"

#include <algorithm>

#include "bicached/error.h"

namespace bicached {
namespace {

void replace(std::string& text, const std::string& what, int number) {
  const size_t at = text.find(what);
  if (at != std::string::npos) text.replace(at, what.size(), std::to_string(number));
}

class Lister {
 public:
  explicit Lister(const ParsedModel& model) : model_(model), config_(model.config) {}

  std::vector<TensorSpec> list() {
    add(TensorRole::kEmbedding);
    add(TensorRole::kFinalNorm);
    if (!config_.tied_head) add(TensorRole::kHead);
    for (layer_ = 0; layer_ < config_.num_layers; ++layer_) add_layer();
    return std::move(specs_);
  }

 private:
  bool has(TensorRole role) const { return pattern_of(role) != nullptr; }

  const char* pattern_of(TensorRole role) const {
    for (const auto& [named, pattern] : *model_.family->tensor_names) {
      if (named == role) return pattern;
    }
    return nullptr;
  }

  void add(TensorRole role) {
    const char* pattern = pattern_of(role);
    if (!pattern) {
      throw Error(ErrorCode::kInternal, std::string("family ") + model_.family->name +
                                            " names no tensor for role " +
                                            std::to_string(static_cast<int>(role)));
    }
    TensorSpec spec{pattern, shape_of(role), role, layer_, expert_};
    replace(spec.name, "{layer}", layer_);
    replace(spec.name, "{expert}", expert_);
    specs_.push_back(std::move(spec));
  }

  void add_all(std::initializer_list<TensorRole> roles) {
    for (const TensorRole role : roles) add(role);
  }

  void add_layer() {
    add(TensorRole::kAttentionNorm);
    if (has(TensorRole::kQkv)) {
      add(TensorRole::kQkv);
    } else {
      add_all({TensorRole::kQuery, TensorRole::kKey, TensorRole::kValue});
    }
    if (config_.qkv_bias) {
      add_all({TensorRole::kQueryBias, TensorRole::kKeyBias, TensorRole::kValueBias});
    }
    if (config_.qk_norm) add_all({TensorRole::kQueryNorm, TensorRole::kKeyNorm});
    add_all({TensorRole::kAttentionOut, TensorRole::kMlpNorm});
    if (!config_.is_sparse(layer_)) {
      add_all({TensorRole::kGate, TensorRole::kUp, TensorRole::kDown});
      return;
    }
    add(TensorRole::kRouter);
    if (config_.experts.router_bias != RouterBias::kNone) add(TensorRole::kRouterBias);
    if (config_.experts.shared_size > 0) {
      add_all({TensorRole::kSharedGate, TensorRole::kSharedUp, TensorRole::kSharedDown});
    }
    for (expert_ = 0; expert_ < config_.experts.num_experts; ++expert_) {
      add_all({TensorRole::kExpertGate, TensorRole::kExpertUp, TensorRole::kExpertDown});
    }
    expert_ = -1;
  }

  std::vector<int64_t> shape_of(TensorRole role) const {
    const ModelConfig& c = config_;
    const int64_t d = c.hidden_size, q = int64_t{c.num_heads} * c.head_size;
    const int64_t kv = int64_t{c.num_kv_heads} * c.head_size;
    const ExpertsConfig& e = c.experts;
    switch (role) {
      case TensorRole::kEmbedding:
      case TensorRole::kHead: return {c.num_logits, d};
      case TensorRole::kFinalNorm:
      case TensorRole::kAttentionNorm:
      case TensorRole::kMlpNorm: return {d};
      case TensorRole::kQkv: return {q + 2 * kv, d};
      case TensorRole::kQuery: return {q, d};
      case TensorRole::kKey:
      case TensorRole::kValue: return {kv, d};
      case TensorRole::kQueryBias: return {q};
      case TensorRole::kKeyBias:
      case TensorRole::kValueBias: return {kv};
      case TensorRole::kQueryNorm:
      case TensorRole::kKeyNorm: return {c.head_size};
      case TensorRole::kAttentionOut: return {d, q};
      case TensorRole::kGate:
      case TensorRole::kUp: return {c.mlp_size, d};
      case TensorRole::kDown: return {d, c.mlp_size};
      case TensorRole::kRouter: return {e.num_experts, d};
      case TensorRole::kRouterBias: return {e.num_experts};
      case TensorRole::kSharedGate:
      case TensorRole::kSharedUp: return {e.shared_size, d};
      case TensorRole::kSharedDown: return {d, e.shared_size};
      case TensorRole::kExpertGate:
      case TensorRole::kExpertUp: return {e.size, d};
      case TensorRole::kExpertDown: return {d, e.size};
    }
    return {};
  }

  const ParsedModel& model_;
  const ModelConfig& config_;
  std::vector<TensorSpec> specs_;
  int layer_ = -1, expert_ = -1;
};

}  // namespace

std::vector<TensorSpec> list_tensors(const ParsedModel& model) { return Lister(model).list(); }

}  // namespace bicached
