#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/commands.h"
#include "app/flag_values.h"
#include "app/model_folder.h"
#include "base/machine_limits.h"
#include "bicached/depth_policy.h"
#include "bicached/error.h"
#include "bicached/load.h"
#include "cache_index/depth/depth_table.h"
#include "config/decode_defaults.h"
#include "config/reuse_start.h"

namespace bicached {
namespace {

using Json = nlohmann::ordered_json;

struct InfoOptions {
  std::string canvases = "16";
  std::string canvas_tokens;  // empty: the model's longest
  bool json = false;
};

std::string bytes_text(int64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  char buffer[48];
  std::snprintf(buffer, sizeof buffer, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return buffer;
}

/// The parameters of the algorithm, with their values.
Json params_of(const DecodeSettings& decode) {
  Json params = Json::object();
  for (const UnmaskerInfo& info : unmasker_table()) {
    if (decode.algorithm != info.name) continue;
    for (const UnmaskerParam& param : info.params) {
      params[param.limit.name] = decode.params.at(param.limit.name);
    }
  }
  return params;
}

/// "threshold, threshold 0.9, schedule even, blocks of 32".
std::string decoder_text(const Json& decoder, int max_length) {
  std::string text = decoder["algorithm"].get<std::string>();
  for (const auto& [name, value] : decoder["params"].items()) {
    text += ", " + name + " " + value.dump();
  }
  return text + ", schedule " + decoder["schedule"].get<std::string>() +
         (decoder["block_length"] < max_length ? ", blocks of " + decoder["block_length"].dump()
                                               : ", no blocks");
}

/// Of an entry that holds all layers: K and V, and the hidden states at which requests may enter.
int64_t prefix_bytes_per_token(const ModelInfo& model, const CacheSettings& cache) {
  const bool is_exact = model.attention_block > 0;  // all layers or none
  const DepthPolicy& policy =
      find_depth_policy(is_exact ? "full" : cache.policy, !cache.depth_table.empty());
  std::optional<DepthTable> table;
  if (!cache.depth_table.empty()) table = DepthTable::load(cache.depth_table, model.num_layers);
  int64_t states = 0;
  for (const int depth : policy.depths(model.num_layers, cache.depth, table ? &*table : nullptr)) {
    states += depth > 0 && depth < model.num_layers ? 1 : 0;
  }
  const int64_t element = model.dtype == "float32" ? 4 : 2;
  return model.kv_bytes_per_token + states * model.hidden_size * element;
}

/// What `serve` takes with a K/V pool of so many canvases, once it has run its largest forward and
/// stored all the prefixes that it may.
Json memory_of(const ModelInfo& model, const Settings& settings, const InfoOptions& options) {
  const int64_t canvases = parse_count("--canvases", options.canvases);
  const int64_t tokens = options.canvas_tokens.empty()
                             ? model.max_length
                             : parse_count("--canvas-tokens", options.canvas_tokens);
  const int64_t canvas_bytes = tokens * model.kv_bytes_per_token;
  const int64_t forward = forward_bytes(model, settings.engine.max_rows_per_forward);
  const int64_t prefixes = load_cache_settings(settings, model).cache_bytes;
  const int64_t total =
      model.weight_bytes + canvases * canvas_bytes + prefixes + forward + model.runtime_bytes;
  return {{"canvases", canvases},
          {"canvas_tokens", tokens},
          {"canvas_bytes", canvas_bytes},
          {"kv_bytes", canvases * canvas_bytes},
          {"prefix_bytes", prefixes},
          {"forward_bytes", forward},
          {"runtime_bytes", model.runtime_bytes},
          {"total_bytes", total}};
}

Json describe(const ModelInfo& model, const Settings& settings, const DecodeSettings& decode,
              const ReuseStart& start, const TextTools& text, const InfoOptions& options) {
  return {{"name", model.name},
          {"family", model.family},
          {"fingerprint", model.fingerprint},
          {"parameters", model.num_parameters},
          {"layers", model.num_layers},
          {"hidden_size", model.hidden_size},
          {"heads", model.num_heads},
          {"kv_heads", model.num_kv_heads},
          {"head_size", model.head_size},
          {"vocab_size", model.vocab_size},
          {"max_length", model.max_length},
          {"mask_token", model.mask_token},
          {"end_tokens", model.end_tokens},
          {"device", model.device},
          {"dtype", model.dtype},
          {"logits_shift", model.logits_shift},
          {"attention_block", model.attention_block},
          {"experts", model.num_experts},
          {"experts_per_token", model.experts_per_token},
          {"decoder",
           {{"algorithm", decode.algorithm},
            {"steps", decode.steps},
            {"schedule", decode.schedule},
            {"block_length", decode.block_length},
            {"temperature", decode.temperature},
            {"cfg_scale", decode.cfg_scale},
            {"params", params_of(decode)}}},
          {"reuse_start", describe_plan(start.plan)},
          {"reuse_start_reason", start.reason},
          {"weight_bytes", model.weight_bytes},
          {"kv_bytes_per_token", model.kv_bytes_per_token},
          {"prefix_bytes_per_token", prefix_bytes_per_token(model, settings.cache)},
          {"depth_table", settings.cache.depth_table},
          {"memory", memory_of(model, settings, options)},
          {"tokenizer", {{"kind", "byte-level BPE"}, {"ids", text.tokenizer->vocab_size()}}},
          {"chat_template", text.chat_template != nullptr}};
}

void print_line(const char* name, const std::string& value) {
  std::printf("%-16s %s\n", name, value.c_str());
}

void print_text(const ModelInfo& model, const TextTools& text, const Json& json) {
  const Json& memory = json["memory"];
  print_line("model", model.name + ", family " + model.family);
  print_line("parameters", std::to_string(model.num_parameters));
  print_line("layers", std::to_string(model.num_layers) + " of width " +
                           std::to_string(model.hidden_size) + ", " +
                           std::to_string(model.num_heads) + " heads of " +
                           std::to_string(model.head_size) + ", " +
                           std::to_string(model.num_kv_heads) + " of them with own K/V");
  print_line("vocabulary", std::to_string(model.vocab_size) + " ids, tokenizer with " +
                               std::to_string(text.tokenizer->vocab_size()) + " (byte-level BPE)");
  print_line("attention", model.attention_block == 0
                              ? "every row sees the whole canvas"
                              : "blocks of " + std::to_string(model.attention_block) +
                                    ", each sees itself and those before it");
  if (model.num_experts > 0) {
    print_line("experts", std::to_string(model.num_experts) + ", of which a token takes " +
                              std::to_string(model.experts_per_token));
  }
  print_line("chat template", !text.chat_template        ? "none: only raw prompts"
                              : text.has_family_template ? "none: the family's is used"
                                                         : "yes");
  print_line("longest canvas", std::to_string(model.max_length) + " tokens");
  print_line("runs on", model.device + " in " + model.dtype);
  print_line("decodes by", decoder_text(json["decoder"], model.max_length));
  print_line("starts with", json["reuse_start"].get<std::string>() + ": " +
                                json["reuse_start_reason"].get<std::string>());
  print_line("weights", bytes_text(model.weight_bytes));
  print_line("K/V", bytes_text(model.kv_bytes_per_token) + " a token");
  print_line("prefix entry", bytes_text(json["prefix_bytes_per_token"].get<int64_t>()) +
                                 " a token, when as deep as can be");
  const std::string table = json["depth_table"];
  print_line("depth table", table.empty() ? "none" : table);
  print_line("memory", bytes_text(memory["total_bytes"].get<int64_t>()) + " = weights + " +
                           bytes_text(memory["kv_bytes"].get<int64_t>()) + " for " +
                           std::to_string(memory["canvases"].get<int64_t>()) + " canvases of " +
                           std::to_string(memory["canvas_tokens"].get<int64_t>()) + " tokens + " +
                           bytes_text(memory["prefix_bytes"].get<int64_t>()) +
                           " for stored prefixes + " +
                           bytes_text(memory["forward_bytes"].get<int64_t>() +
                                      memory["runtime_bytes"].get<int64_t>()) +
                           " for forwards");
  print_line("machine", json["machine"].get<std::string>() + "; " + json["threads"].dump() +
                            " threads compute");
}

int run_info(const Settings& settings, const InfoOptions& options) {
  const ModelInfo model = inspect_model(settings.model);
  const TextTools text = load_text_tools(settings.model.path, model);
  const ReuseStart start = load_reuse_start(settings.model.path, model);
  DecodeSettings decode = load_decode_defaults(settings, model);
  if (decode.schedule == "auto") decode.schedule = schedule_name(model.decoder.schedule);
  Json json = describe(model, settings, decode, start, text, options);
  json["machine"] = describe(read_machine_limits());
  json["threads"] = choose_num_threads(settings.model.num_threads);
  if (options.json) {
    std::puts(json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    print_text(model, text, json);
  }
  return 0;
}

}  // namespace

Command info_command() {
  const auto options = std::make_shared<InfoOptions>();
  Command command{"info", "What a model folder holds, and the memory it needs",
                  [options](const Settings& settings) { return run_info(settings, *options); }};
  command.flags = {
      {"--canvases", "Canvases at once, for the memory estimate", &options->canvases},
      {"--canvas-tokens", "Length of each; the model's longest if not given",
       &options->canvas_tokens},
      {"--json", "As JSON", &options->json},
  };
  command.setting_groups = kDecodingGroups;
  command.computes = false;
  return command;
}

}  // namespace bicached
