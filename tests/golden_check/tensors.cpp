// Tensors: logits and inner tensors of one forward, draws of the sampler, prefix entries, logits of
// decodings with reuse.
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <sstream>

#include "bicached/error.h"
#include "decode/noise.h"
#include "decode/prefix_entry.h"
#include "denoise/torch_denoiser.h"
#include "golden_check/checkpoints.h"
#include "golden_check/golden_case.h"
#include "golden_check/report.h"
#include "golden_check/tensor_file.h"

namespace {

using namespace bicached;
using nlohmann::json;
namespace fs = std::filesystem;

TorchDenoiser& find_model(Checkpoints& checkpoints, const std::string& name,
                          const std::string& family) {
  Denoiser* denoiser = checkpoints.find(name, family);
  if (!denoiser) throw MissingFeature{"family " + family};
  return dynamic_cast<TorchDenoiser&>(*denoiser);
}

double relative_error(const at::Tensor& got, const at::Tensor& want) {
  return at::linalg_vector_norm(got.sub(want)).item<double>() /
         std::max(1e-6, at::linalg_vector_norm(want).item<double>());
}

/// In float32 every number within `tolerance`, as the READMEs say. In bfloat16 the error of the
/// whole tensor, relative to its size, within `relative` (see simulated_rounding).
void expect_close(const std::string& what, const at::Tensor& got, const at::Tensor& want,
                  double tolerance, std::optional<double> relative) {
  if (got.sizes() != want.sizes()) throw Mismatch{what + ": another shape"};
  const at::Tensor found = got.to(at::kCPU, at::kFloat);
  const double error =
      relative ? relative_error(found, want) : found.sub(want).abs().max().item<double>();
  const double allowed = relative.value_or(tolerance);
  if (!(error <= allowed)) {
    std::ostringstream text;
    text << what << " differs by " << error << ", allowed " << allowed;
    throw Mismatch{text.str()};
  }
}

/// Cases whose READMEs give a tolerance for float32 only.
void needs_float32(const TorchDenoiser& model) {
  if (model.info().dtype != "float32") throw MissingFeature{"a tolerance for bfloat16"};
}

/// A slab that is given back however a case ends.
class Slab {
 public:
  Slab(TorchDenoiser& model, int num_tokens) : model_(model) {
    const auto id = model.open_slab(num_tokens);
    if (!id) throw Mismatch{"the KV pool has no room for " + std::to_string(num_tokens)};
    id_ = *id;
  }
  ~Slab() { model_.close_slab(id_); }
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;
  SlabId id() const { return id_; }
  /// K and V of all layers for the first `num_tokens` positions: [L, tokens, Hkv, D], CPU.
  std::pair<at::Tensor, at::Tensor> kv(int64_t num_tokens) const {
    std::vector<at::Tensor> keys, values;
    const int64_t begin = model_.pool().slabs().range(id_).begin;
    for (int layer = 0; layer < model_.info().num_layers; ++layer) {
      keys.push_back(model_.pool().keys(layer).narrow(0, begin, num_tokens).unsqueeze(0));
      values.push_back(model_.pool().values(layer).narrow(0, begin, num_tokens).unsqueeze(0));
    }
    return {at::cat(keys).cpu(), at::cat(values).cpu()};
  }

 private:
  TorchDenoiser& model_;
  SlabId id_ = kNoId;
};

/// Inner tensors of the forwards that run while it lives, by name.
class Recorder {
 public:
  explicit Recorder(TorchDenoiser& model) : model_(model) {
    model.set_observer([this](const std::string& name, const at::Tensor& value) {
      tensors[name] = value.to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    });
  }
  ~Recorder() { model_.set_observer({}); }
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  /// "layers.I.`name`" of all layers: [L, ...].
  at::Tensor layers(const std::string& name) const {
    std::vector<at::Tensor> all;
    for (int i = 0; i < model_.info().num_layers; ++i) {
      all.push_back(tensors.at("layers." + std::to_string(i) + "." + name).unsqueeze(0));
    }
    return at::cat(all);
  }

  std::map<std::string, at::Tensor> tensors;

 private:
  TorchDenoiser& model_;
};

/// One forward over all rows of a canvas, in blocks of so many that attend only backwards, or (0)
/// each over all; `observer` sees its inner tensors.
at::Tensor forward_all(TorchDenoiser& model, const std::vector<TokenId>& tokens, int block) {
  const int length = static_cast<int>(tokens.size());
  const Slab slab(model, length);
  Forward forward;
  append_prefix_entry(forward, tokens, slab.id(), kNoId, model.info().num_layers, block);
  for (int row = 0; row < length; ++row) {
    LogitRow& wanted = forward.logit_rows.emplace_back();
    wanted.row = row;
    wanted.group = block > 0 ? row / block : 0;
  }
  return model.run_logits(forward);
}

/// How far bfloat16 may be off, by name: twice the error of a float32 forward whose residual stream
/// gets bfloat16's rounding as noise. A rounding to 8 bits is uniform in 2^-9 either way, 2^-9 /
/// sqrt(3) as a standard deviation; about eight of them a layer (norms, projections, attention,
/// MLP, the two sums) add up like a random walk. Simulated rather than counted, because these
/// random networks amplify what comes in by a factor that differs from case to case.
std::map<std::string, double> simulated_rounding(TorchDenoiser& float32,
                                                 const std::vector<TokenId>& tokens, int block,
                                                 const std::map<std::string, at::Tensor>& want) {
  const double deviation = std::ldexp(1.0, -9) / std::sqrt(3.0) * std::sqrt(8.0);
  std::map<std::string, double> errors;
  const auto note = [&](const std::string& name, at::Tensor got) {
    const auto known = want.find(name);
    if (known == want.end()) return;
    if (got.dim() == 3) got = got.transpose(0, 1);
    errors[name] = 2 * (relative_error(got, known->second) + std::ldexp(1.0, -9));
  };
  uint64_t draw = 0;
  float32.set_observer([&](const std::string& name, const at::Tensor& value) {
    note(name, value);
    if (name != "embedding" && !name.ends_with(".hidden")) return;
    at::Tensor stream = value;  // the tensor that the next layer reads
    std::vector<float> noise(static_cast<size_t>(stream.numel()));
    for (float& x : noise) {
      // Uniform with this deviation.
      const double u = counter_uniform(7, draw++, 0);
      x = static_cast<float>(1 + (2 * u - 1) * std::sqrt(3.0) * deviation);
    }
    stream.mul_(at::tensor(noise).view(stream.sizes()));
  });
  note("logits", forward_all(float32, tokens, block));
  float32.set_observer({});
  return errors;
}

void check_logits_case(const fs::path& path, Checkpoints& checkpoints) {
  const json about = read_json(path);
  TorchDenoiser& model = find_model(checkpoints, about.at("checkpoint"), about.at("family"));
  auto want = read_tensors(path.parent_path() / about.at("file").get<std::string>());
  if (about.contains("router_file")) {
    want.merge(read_tensors(path.parent_path() / about["router_file"].get<std::string>()));
  }
  const auto tokens = about.at("input_ids").get<std::vector<TokenId>>();
  const int block =
      about.value("attention", "full") == "full" ? 0 : about.at("block_length").get<int>();
  std::map<std::string, double> rounding;
  if (model.info().dtype == "bfloat16") {
    const auto float32 = checkpoints.load(about.at("checkpoint"), "float32", "cpu");
    rounding = simulated_rounding(dynamic_cast<TorchDenoiser&>(*float32), tokens, block, want);
  }
  const auto relative = [&](const std::string& name) {
    return rounding.empty() ? std::nullopt : std::optional<double>(rounding.at(name));
  };
  expect_close("logits", forward_all(model, tokens, block), want.at("logits"), 2e-3,
               relative("logits"));
  if (want.size() == 1) return;
  const Recorder recorder(model);
  expect_close("observed logits", forward_all(model, tokens, block), want.at("logits"), 2e-3,
               relative("logits"));
  for (const auto& [name, tensor] : want) {
    if (name == "logits") continue;
    at::Tensor got = recorder.tensors.at(name);
    if (got.dim() == 3) got = got.transpose(0, 1);  // the files have heads first
    expect_close(name, got, tensor, 5e-4, relative(name));
  }
}

/// How unlikely the counts are, in standard deviations (Wilson and Hilferty 1931); cells that
/// expect fewer than five draws are one.
double chi_square_deviation(const std::map<TokenId, int>& counts,
                            const std::map<TokenId, double>& expected, double num_draws) {
  double chi_square = 0, rare_expected = 0, rare_counted = 0;
  int cells = 0;
  const auto add = [&](double counted, double want) {
    chi_square += (counted - want) * (counted - want) / want;
    ++cells;
  };
  for (const auto& [token, share] : expected) {
    const auto found = counts.find(token);
    const double counted = found == counts.end() ? 0 : found->second;
    if (share * num_draws >= 5) {
      add(counted, share * num_draws);
    } else {
      rare_expected += share * num_draws;
      rare_counted += counted;
    }
  }
  if (rare_expected >= 1) add(rare_counted, rare_expected);
  if (cells < 2) return 0;
  const double freedom = cells - 1, spread = 2.0 / (9.0 * freedom);
  return (std::cbrt(chi_square / freedom) - (1 - spread)) / std::sqrt(spread);
}

void check_sampling_case(const fs::path& path) {
  const json about = read_json(path);
  const auto logits = about.at("logits").get<std::vector<float>>();
  const json& params = about.at("params");
  SamplingParams sampling;
  sampling.temperature = params.at("temperature");
  if (params.at("top_p").is_number()) sampling.top_p = params["top_p"];
  if (params.at("top_k").is_number()) sampling.top_k = params["top_k"];
  const bool is_dream = about.at("form") == "dream";
  const TokenRules rules{static_cast<int>(logits.size()), -1, is_dream};
  constexpr int kChunk = 1000, kChunks = 40;
  const at::Tensor row = at::tensor(logits).unsqueeze(0);
  const at::Tensor full = row.to(at::kDouble).softmax(1);
  std::map<TokenId, int> counts;
  std::map<TokenId, double> expected;
  for (const auto& [token, share] : about.at("expected").items()) {
    expected[std::stoi(token)] = share;
  }
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    std::vector<LogitRow> rows(kChunk);
    for (int i = 0; i < kChunk; ++i) {
      rows[static_cast<size_t>(i)].sampling = &sampling;
      rows[static_cast<size_t>(i)].uniform =
          counter_uniform(1, static_cast<uint64_t>(chunk), static_cast<uint64_t>(i));
    }
    const at::Tensor drawn = sample_rows(row.repeat({kChunk, 1}), rows, rules);
    for (const RowResult& result : read_rows({drawn}, rows)) {
      ++counts[result.token];
      if (!expected.contains(result.token) && full[0][result.token].item<double>() > 1e-9) {
        throw Mismatch{"token " + std::to_string(result.token) + " must never be drawn"};
      }
      const double probability = full[0][result.token].item<double>();
      if (std::abs(result.probability - probability) > 2e-4) {
        throw Mismatch{"the probability is not the untempered one"};
      }
      const auto found = expected.find(result.token);
      const double share = found == expected.end() ? 0 : found->second;
      if (std::abs(result.confidence - (is_dream ? share : probability)) > 2e-4) {
        throw Mismatch{"the confidence of token " + std::to_string(result.token) + " is " +
                       std::to_string(result.confidence)};
      }
    }
  }
  const double deviation = chi_square_deviation(counts, expected, kChunk * kChunks);
  if (deviation > 4) {
    throw Mismatch{"frequencies are " + std::to_string(deviation) + " deviations off"};
  }
}

/// The three confidences of Dream at temperature 0, under filters.
void check_dream_confidences(const fs::path& path) {
  std::map<std::string, at::Tensor> logits;
  for (const json& row : read_json(path).at("rows")) {
    const std::string checkpoint = row.at("checkpoint");
    if (!logits.contains(checkpoint)) {
      const std::string name = path.stem().string() + "_" + checkpoint + ".safetensors";
      logits[checkpoint] = read_tensors(path.parent_path() / name).at("logits");
    }
    SamplingParams sampling;
    sampling.temperature = row.at("temperature");
    if (row.at("top_p").is_number()) sampling.top_p = row["top_p"];
    if (row.at("top_k").is_number()) sampling.top_k = row["top_k"];
    std::vector<LogitRow> rows(1);
    rows[0].sampling = &sampling;
    const at::Tensor one = logits[checkpoint].narrow(0, row.at("row"), 1).clone();
    const TokenRules rules{static_cast<int>(one.size(1)), -1, true};
    const RowResult result = read_rows({sample_rows(one, rows, rules)}, rows)[0];
    const auto is_close = [](double got, double want) { return std::abs(got - want) <= 2e-4; };
    if (result.token != row.at("token") || !is_close(result.confidence, row.at("maskgit_plus")) ||
        !is_close(result.margin, row.at("topk_margin")) ||
        !is_close(-result.entropy, row.at("entropy"))) {
      std::ostringstream text;
      text << row.dump() << ": got token " << result.token << ", " << result.confidence << ", "
           << result.margin << ", " << -result.entropy;
      throw Mismatch{text.str()};
    }
  }
}

/// Decodes along a trace of BiCache: its groups, its commits. `after` sees every forward's logits
/// of the rows in `wanted(step)`.
struct Replay {
  const json& trace;
  TorchDenoiser& model;
  std::function<std::vector<int>(const json& step)> wanted;
  std::function<void(const json& step, const Slab& slab, const at::Tensor& logits)> after;
  std::function<void(const Recorder& recorder, const Slab& slab, EntryId entry)> entry_made =
      [](const Recorder&, const Slab&, EntryId) {};
};

Forward forward_of_step(const json& step, const std::vector<TokenId>& canvas, SlabId slab,
                        EntryId entry, int num_layers) {
  Forward forward;
  for (const json& part : step.at("groups")) {
    RowGroup group;
    group.slab = slab;
    group.begin = part[0];
    group.end = part[1];
    group.enter_layer = part[2];
    group.key_end = static_cast<int>(canvas.size());
    if (group.enter_layer >= num_layers || group.begin == group.end) continue;
    if (group.enter_layer == 0) {
      group.tokens.assign(canvas.begin() + group.begin, canvas.begin() + group.end);
    } else {
      group.enter_from = entry;
    }
    forward.groups.push_back(std::move(group));
  }
  return forward;
}

void want_rows(Forward& forward, const std::vector<int>& rows) {
  for (const int row : rows) {
    LogitRow wanted;
    for (const RowGroup& group : forward.groups) {
      if (row >= group.begin && row < group.end) break;
      ++wanted.group;
    }
    wanted.row = row;
    forward.logit_rows.push_back(wanted);
  }
}

void run_replay(const Replay& replay) {
  const json& params = replay.trace.at("params");
  TorchDenoiser& model = replay.model;
  auto canvas = replay.trace.at("prompt_ids").get<std::vector<TokenId>>();
  const int prefix_len = params.at("prefix_len"), depth = params.at("depth");
  const std::vector<TokenId> prefix(canvas.begin(), canvas.begin() + prefix_len);
  canvas.insert(canvas.end(), params.at("gen_length").get<size_t>(), model.info().mask_token);
  const Slab slab(model, static_cast<int>(canvas.size()));
  EntryId entry = kNoId;
  if (depth > 0) {
    EntrySpec spec{prefix_len, model.info().num_layers, {}};
    for (int b = 1; b < model.info().num_layers; ++b) spec.boundaries.push_back(b);
    entry = model.create_entry(spec);
    const Slab own(model, prefix_len);
    Forward forward;
    append_prefix_entry(forward, prefix, own.id(), entry, model.info().num_layers, 0);
    const Recorder recorder(model);
    model.run(forward);
    model.fill_entry(entry, own.id());
    model.load_entry(entry, slab.id(), depth);
    replay.entry_made(recorder, own, entry);
  }
  try {
    for (const json& step : replay.trace.at("steps")) {
      Forward forward = forward_of_step(step, canvas, slab.id(), entry, model.info().num_layers);
      want_rows(forward, replay.wanted(step));
      replay.after(step, slab, model.run_logits(forward));
      for (const json& commit : step.at("commits")) {
        canvas[commit[0].get<size_t>()] = commit[1].get<TokenId>();
      }
    }
  } catch (...) {
    if (entry != kNoId) model.destroy_entry(entry);
    throw;
  }
  if (entry != kNoId) model.destroy_entry(entry);
}

/// Logits of a trace's masked rows at some denoising steps.
void check_trace_logits(const fs::path& path, Checkpoints& checkpoints) {
  const auto want = read_tensors(path);
  const json trace =
      read_json(path.parent_path().parent_path() / "traces" / (path.stem().string() + ".json"));
  TorchDenoiser& model = find_model(checkpoints, trace.at("checkpoint"), trace.at("family"));
  needs_float32(model);
  // The last forward of a denoising step decides; an earlier one's logits are thrown away.
  std::map<int, int> deciding;
  for (const json& step : trace.at("steps")) deciding[step.at("denoise_step")] = step.at("step");
  const auto name_of = [&](const json& step) {
    const int denoise_step = step.at("denoise_step");
    return deciding[denoise_step] == step.at("step").get<int>()
               ? "denoise_step_" + std::to_string(denoise_step)
               : std::string("none");
  };
  size_t num_compared = 0;
  run_replay({trace, model,
              [&](const json& step) {
                std::vector<int> rows;
                if (const auto it = want.find(name_of(step) + ".positions"); it != want.end()) {
                  const int* data = it->second.const_data_ptr<int>();
                  rows.assign(data, data + it->second.numel());
                }
                return rows;
              },
              [&](const json& step, const Slab&, const at::Tensor& logits) {
                const std::string name = name_of(step);
                const auto it = want.find(name + ".logits");
                if (it == want.end()) return;
                expect_close(name, logits, it->second, 1e-3, std::nullopt);
                ++num_compared;
              }});
  if (2 * num_compared != want.size()) throw Mismatch{"a step of the file is not in the trace"};
}

/// An entry's tensors, and the prefix K/V of the request after each refresh.
void check_entry_case(const fs::path& path, Checkpoints& checkpoints) {
  const std::string name = path.filename().string();
  const std::string trace_name = name.substr(0, name.find('.'));
  const json trace =
      read_json(path.parent_path().parent_path() / "traces" / (trace_name + ".json"));
  TorchDenoiser& model = find_model(checkpoints, trace.at("checkpoint"), trace.at("family"));
  needs_float32(model);
  const auto want = read_tensors(path);
  const auto refreshed =
      read_tensors(path.parent_path() / (trace_name + ".prefix_after_refresh.safetensors"));
  const int64_t prefix_len = trace.at("params").at("prefix_len");
  size_t num_compared = 0;
  Replay replay{trace, model, [](const json&) { return std::vector<int>(); },
                [&](const json& step, const Slab& slab, const at::Tensor&) {
                  const std::string forward = "forward_" + step.at("step").dump();
                  const auto keys = refreshed.find(forward + ".k_after_rope");
                  if (keys == refreshed.end()) return;
                  const auto [k, v] = slab.kv(prefix_len);
                  expect_close(forward + " keys", k, keys->second, 5e-4, std::nullopt);
                  expect_close(forward + " values", v, refreshed.at(forward + ".v"), 5e-4,
                               std::nullopt);
                  ++num_compared;
                }};
  replay.entry_made = [&](const Recorder& recorder, const Slab& own, EntryId entry) {
    const auto [k, v] = own.kv(prefix_len);
    expect_close("k_before_rope", recorder.layers("k_pre_rope"), want.at("k_before_rope"), 5e-4,
                 std::nullopt);
    expect_close("k_after_rope", k, want.at("k_after_rope"), 5e-4, std::nullopt);
    expect_close("v", v, want.at("v"), 5e-4, std::nullopt);
    expect_close("hidden", recorder.layers("hidden"), want.at("hidden"), 5e-4, std::nullopt);
    for (int b = 1; b < model.info().num_layers; ++b) {
      expect_close("captured before layer " + std::to_string(b), model.entries().states(entry, b),
                   want.at("hidden")[b - 1], 5e-4, std::nullopt);
    }
  };
  run_replay(replay);
  if (2 * num_compared != refreshed.size()) throw Mismatch{"a refresh is not in the trace"};
}

std::vector<fs::path> files_of(const fs::path& folder, const std::string& ending) {
  std::vector<fs::path> paths;
  if (!fs::is_directory(folder)) return paths;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string().ends_with(ending)) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

void check_tensors(const fs::path& folder, Report& report) {
  const c10::InferenceMode mode;
  Checkpoints checkpoints(folder / "checkpoints");
  const std::string name = folder.filename().string();
  const auto name_of = [&](const fs::path& path) {
    return name + "/" + fs::relative(path, folder).replace_extension().string();
  };
  for (const fs::path& path : files_of(folder / "logits", ".json")) {
    run_case(name_of(path), report, [&] { check_logits_case(path, checkpoints); });
  }
  for (const fs::path& path : files_of(folder / "logits", ".safetensors")) {
    if (fs::exists(fs::path(path).replace_extension(".json"))) continue;
    if (path.stem().extension() == ".router") continue;  // of a case beside it
    run_case(name_of(path), report, [&] { check_trace_logits(path, checkpoints); });
  }
  for (const fs::path& path : files_of(folder / "sampling", ".json")) {
    run_case(name_of(path), report, [&] {
      read_json(path).contains("form") ? check_sampling_case(path) : check_dream_confidences(path);
    });
  }
  for (const fs::path& path : files_of(folder / "entry", ".entry.safetensors")) {
    run_case(name_of(path), report, [&] { check_entry_case(path, checkpoints); });
  }
}
