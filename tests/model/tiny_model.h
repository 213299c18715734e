#pragma once

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace bicached::testing {

/// A folder of its own that goes with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "bicached-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string path() const { return path_.string(); }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }

 private:
  std::filesystem::path path_;
};

/// A safetensors file: header size, header, data.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof size);
  return bytes + header + data;
}

/// A LLaDA config of a model small enough to run in a millisecond: grouped-query attention, output
/// rows past the vocabulary, tied head. Names as in the published files.
inline nlohmann::json tiny_config() {
  return {{"model_type", "llada"},
          {"block_type", "llama"},
          {"layer_norm_type", "rms"},
          {"activation_type", "silu"},
          {"rope", true},
          {"alibi", false},
          {"include_bias", false},
          {"include_qkv_bias", false},
          {"d_model", 32},
          {"n_heads", 4},
          {"n_kv_heads", 2},
          {"n_layers", 5},
          {"mlp_hidden_size", 48},
          {"vocab_size", 60},
          {"embedding_size", 64},
          {"max_sequence_length", 128},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"mask_token_id", 57},
          {"eos_token_id", 55},
          {"weight_tying", true}};
}

/// The tensors that `config` (untied: also the head) asks for, name to shape.
inline std::map<std::string, std::vector<int64_t>> tiny_shapes(const nlohmann::json& config) {
  const int64_t d = config["d_model"], v = config["embedding_size"], m = config["mlp_hidden_size"];
  const int64_t kv = d / config["n_heads"].get<int64_t>() * config["n_kv_heads"].get<int64_t>();
  const std::string top = "model.transformer.";
  std::map<std::string, std::vector<int64_t>> shapes{{top + "wte.weight", {v, d}},
                                                     {top + "ln_f.weight", {d}}};
  if (!config["weight_tying"].get<bool>()) shapes[top + "ff_out.weight"] = {v, d};
  for (int i = 0; i < config["n_layers"].get<int>(); ++i) {
    const std::string block = top + "blocks." + std::to_string(i) + ".";
    shapes[block + "attn_norm.weight"] = shapes[block + "ff_norm.weight"] = {d};
    shapes[block + "q_proj.weight"] = shapes[block + "attn_out.weight"] = {d, d};
    shapes[block + "k_proj.weight"] = shapes[block + "v_proj.weight"] = {kv, d};
    shapes[block + "ff_proj.weight"] = shapes[block + "up_proj.weight"] = {m, d};
    shapes[block + "ff_out.weight"] = {d, m};
  }
  return shapes;
}

/// A Dream config of the same size, and its tensors.
inline nlohmann::json tiny_dream_config() {
  return {
      {"model_type", "Dream"},       {"hidden_act", "silu"},     {"hidden_size", 32},
      {"num_attention_heads", 4},    {"num_key_value_heads", 2}, {"num_hidden_layers", 5},
      {"intermediate_size", 48},     {"vocab_size", 60},         {"max_position_embeddings", 128},
      {"rms_norm_eps", 1e-6},        {"rope_theta", 1e6},        {"rope_scaling", nullptr},
      {"use_sliding_window", false}, {"mask_token_id", 57},      {"eos_token_id", 55},
      {"tie_word_embeddings", false}};
}

inline std::map<std::string, std::vector<int64_t>> tiny_dream_shapes() {
  constexpr int64_t d = 32, kv = 16, m = 48, v = 60;
  std::map<std::string, std::vector<int64_t>> shapes{{"model.embed_tokens.weight", {v, d}},
                                                     {"model.norm.weight", {d}},
                                                     {"lm_head.weight", {v, d}}};
  for (int i = 0; i < 5; ++i) {
    const std::string block = "model.layers." + std::to_string(i) + ".";
    shapes[block + "input_layernorm.weight"] = {d};
    shapes[block + "post_attention_layernorm.weight"] = {d};
    shapes[block + "self_attn.q_proj.weight"] = shapes[block + "self_attn.o_proj.weight"] = {d, d};
    shapes[block + "self_attn.k_proj.weight"] = shapes[block + "self_attn.v_proj.weight"] = {kv, d};
    shapes[block + "self_attn.q_proj.bias"] = {d};
    shapes[block + "self_attn.k_proj.bias"] = shapes[block + "self_attn.v_proj.bias"] = {kv};
    shapes[block + "mlp.gate_proj.weight"] = shapes[block + "mlp.up_proj.weight"] = {m, d};
    shapes[block + "mlp.down_proj.weight"] = {d, m};
  }
  return shapes;
}

/// A LLaDA2 config of a size that all CUDA kernels take: experts and a shared one, in float8, too.
inline nlohmann::json tiny_llada2_config(int num_shared = 1) {
  return {{"model_type", "llada2_moe"},
          {"hidden_act", "silu"},
          {"hidden_size", 64},
          {"head_dim", 32},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"num_hidden_layers", 3},
          {"first_k_dense_replace", 1},
          {"intermediate_size", 96},
          {"moe_intermediate_size", 64},
          {"num_experts", 8},
          {"num_experts_per_tok", 2},
          {"num_shared_experts", num_shared},
          {"n_group", 4},
          {"topk_group", 2},
          {"score_function", "sigmoid"},
          {"moe_router_enable_expert_bias", true},
          {"routed_scaling_factor", 2.5},
          {"use_bias", false},
          {"use_qkv_bias", false},
          {"use_rmsnorm", true},
          {"norm_head", false},
          {"using_split_qkv_in_self_attention", false},
          {"partial_rotary_factor", 0.5},
          {"vocab_size", 64},
          {"mask_token_id", 57},
          {"eos_token_id", 55},
          {"max_position_embeddings", 128},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", false}};
}

inline std::map<std::string, std::vector<int64_t>> tiny_llada2_shapes(int num_shared = 1) {
  constexpr int64_t d = 64, v = 64, dense = 96, m = 64, experts = 8, head = 32;
  std::map<std::string, std::vector<int64_t>> shapes{{"model.word_embeddings.weight", {v, d}},
                                                     {"model.norm.weight", {d}},
                                                     {"lm_head.weight", {v, d}}};
  const auto add_mlp = [&](const std::string& at, int64_t width) {
    shapes[at + "gate_proj.weight"] = shapes[at + "up_proj.weight"] = {width, d};
    shapes[at + "down_proj.weight"] = {d, width};
  };
  for (int i = 0; i < 3; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    shapes[layer + "input_layernorm.weight"] = {d};
    shapes[layer + "post_attention_layernorm.weight"] = {d};
    shapes[layer + "attention.query_key_value.weight"] = {4 * head, d};
    shapes[layer + "attention.query_layernorm.weight"] = {head};
    shapes[layer + "attention.key_layernorm.weight"] = {head};
    shapes[layer + "attention.dense.weight"] = {d, 2 * head};
    if (i == 0) {
      add_mlp(layer + "mlp.", dense);
      continue;
    }
    shapes[layer + "mlp.gate.weight"] = {experts, d};
    shapes[layer + "mlp.gate.expert_bias"] = {experts};
    add_mlp(layer + "mlp.shared_experts.", num_shared * m);
    for (int e = 0; e < experts; ++e) add_mlp(layer + "mlp.experts." + std::to_string(e) + ".", m);
  }
  return shapes;
}

/// A safetensors file of random float32 tensors: norms near 1, matrices that keep the scale.
inline std::string random_tensors(const std::map<std::string, std::vector<int64_t>>& shapes) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  nlohmann::json header;
  std::string data;
  for (const auto& [name, shape] : shapes) {
    int64_t count = 1;
    for (const int64_t n : shape) count *= n;
    std::vector<float> values(static_cast<size_t>(count));
    const float scale = shape.size() == 1 ? 0.1f : 1.5f / std::sqrt(static_cast<float>(shape[1]));
    for (float& value : values) value = (shape.size() == 1 ? 1.0f : 0.0f) + scale * normal(random);
    const size_t begin = data.size(), bytes = values.size() * sizeof(float);
    data.append(reinterpret_cast<const char*>(values.data()), bytes);
    header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, begin + bytes}}};
  }
  return safetensors_bytes(header.dump(), data);
}

/// A whole model folder.
inline void write_tiny_model(const TempFolder& folder,
                             const nlohmann::json& config = tiny_config()) {
  folder.write("config.json", config.dump());
  folder.write("model.safetensors", random_tensors(tiny_shapes(config)));
}

inline void write_tiny_dream(const TempFolder& folder) {
  folder.write("config.json", tiny_dream_config().dump());
  folder.write("model.safetensors", random_tensors(tiny_dream_shapes()));
}

inline void write_tiny_llada2(const TempFolder& folder) {
  folder.write("config.json", tiny_llada2_config().dump());
  folder.write("model.safetensors", random_tensors(tiny_llada2_shapes()));
}

}  // namespace bicached::testing
