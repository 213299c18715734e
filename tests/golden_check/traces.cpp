// Decoding traces, token by token: rows, commits and confidences of every forward.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <vector>

#include "bicached/error.h"
#include "bicached/unmasker.h"
#include "decode/canvas_decoder.h"
#include "decode/prefix_entry.h"
#include "decode/unmask/schedule.h"
#include "golden_check/checkpoints.h"
#include "golden_check/golden_case.h"
#include "golden_check/report.h"

namespace {

using namespace bicached;
using nlohmann::json;
namespace fs = std::filesystem;

template <typename T>
void expect_equal(const std::string& what, const T& got, const T& want) {
  if (got == want) return;
  std::ostringstream text;
  text << what << " is " << json(got).dump() << ", expected " << json(want).dump();
  throw Mismatch{text.str()};
}

bool is_block_causal(const json& trace) {
  return trace.value("attention", "full") == "block_causal";
}

/// Forwards as ours run them: where a reference runs the prompt, or a finished block once more for
/// its keys and values, these rows run beside those of the next block's first forward; not at all
/// where the block's last forward changed nothing.
json joined_steps(const json& trace) {
  if (!is_block_causal(trace)) return trace.at("steps");
  json joined = json::array();
  std::optional<int> begin;
  for (json step : trace.at("steps")) {
    const int own = step.at("rows")[0];
    if (step.at("forward") == "block") {
      step["rows"][0] = begin.value_or(own);
      begin.reset();
      joined.push_back(step);
    } else if (step["forward"] == "prefill" || !joined.back().at("commits").empty() ||
               !joined.back().value("edits", json::array()).empty()) {
      begin = begin.value_or(own);
    }
  }
  return joined;
}

/// What a trace file asks for, in the server's own terms.
GenerateRequest request_of(const json& trace) {
  const json& params = trace.at("params");
  const auto number = [&](const char* name) {
    return params.contains(name) && params[name].is_number() ? params[name].get<double>() : 0.0;
  };

  GenerateRequest request;
  request.prompt_ids = trace.at("prompt_ids").get<std::vector<TokenId>>();
  request.gen_length = params.at(params.contains("gen_length") ? "gen_length" : "max_new_tokens");
  if (number("top_p") > 0) request.sampling.top_p = static_cast<float>(number("top_p"));
  request.sampling.top_k = static_cast<int>(number("top_k"));
  DecodeParams& decode = request.decode;
  const std::string algorithm = trace.at("algorithm"), schedule = trace.at("schedule");
  static const std::map<std::string, std::string> kOwnNames{{"dynamic", "low_confidence_dynamic"},
                                                            {"editing", "joint_threshold"},
                                                            {"multi_block", "entropy_multi_block"}};
  decode.algorithm = schedule == "quota"            ? algorithm
                     : kOwnNames.contains(schedule) ? kOwnNames.at(schedule)
                                                    : schedule;
  const auto names = unmasker_names();
  if (std::find(names.begin(), names.end(), decode.algorithm) == names.end()) {
    throw MissingFeature{"algorithm " + decode.algorithm};
  }
  decode.block_length = params.value("block_length", request.gen_length);
  decode.steps = params.at("steps");
  if (params.contains("max_post_steps")) {
    decode.params["max_edit_rounds"] = params["max_post_steps"];
  }
  if (is_block_causal(trace)) {
    // The reference decides whole blocks, and gives a block's steps.
    const int block = decode.block_length;
    request.gen_length = static_cast<int>(trace.at("output_ids").size()) -
                         static_cast<int>(request.prompt_ids.size());
    const int steps = params.value("steps_per_block", block / params.value("num_to_transfer", 1));
    decode.steps = steps * request.gen_length / block;
  }
  if (!params.value("takes_best", true)) decode.schedule = Schedule::kTimesteps;
  decode.cfg_scale = static_cast<float>(number("cfg_scale"));
  decode.logits_eos_inf = params.value("logits_eos_inf", false);
  decode.confidence_eos_eot_inf = params.value("confidence_eos_eot_inf", false);
  for (const char* name : {"threshold", "factor", "eps", "editing_threshold", "entropy_threshold",
                           "block_add_threshold"}) {
    if (number(name) > 0) decode.params[name] = number(name);
  }
  decode.eos_early_stop = params.value("early_stop", false);
  const std::string cache = trace.at("cache");
  decode.intra_cache = cache == "prefix"                         ? IntraCache::kPrefix
                       : cache.find("dual") != std::string::npos ? IntraCache::kDual
                                                                 : IntraCache::kNone;
  // The published engine throws the first forward's logits away where a trace does not say.
  if (trace.contains("entry")) {
    if (params.value("first_forward", json()) != "use") {
      decode.first_forward = FirstForward::kDiscarded;
    }
    request.cache.refresh_by_step_modulo = params.value("refresh_rule", "") == "step_modulo";
  }
  if (trace.at("family") == "dream") decode.first_forward = FirstForward::kFirstPosition;
  // Some references run steps that decide nothing; the trace shows whether this one did.
  for (const json& step : joined_steps(trace)) {
    const bool thrown_away = decode.intra_cache == IntraCache::kDual &&
                             decode.first_forward == FirstForward::kDiscarded &&
                             step.at("forward").get<std::string>().starts_with("suffix");
    if (step.at("commits").empty() && !thrown_away) decode.run_empty_steps = true;
  }
  return request;
}

/// Row groups of a step as [begin, end, enter_layer], those that run no layer left out.
std::vector<std::vector<int>> groups_of(const json& step, int num_layers) {
  std::vector<std::vector<int>> groups;
  if (step.contains("groups")) {
    groups = step["groups"].get<std::vector<std::vector<int>>>();
  } else {
    groups = {{step.at("rows")[0], step.at("rows")[1], 0}};
  }
  std::erase_if(groups, [&](const auto& group) { return group[2] >= num_layers; });
  std::sort(groups.begin(), groups.end());
  // Rows that meet and enter at the same layer are one group.
  for (size_t i = 1; i < groups.size();) {
    if (groups[i - 1][1] == groups[i][0] && groups[i - 1][2] == groups[i][2]) {
      groups[i - 1][1] = groups[i][1];
      groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
  return groups;
}

/// Those of blocks that attend by themselves count as one.
std::vector<std::vector<int>> groups_of(const PlannedForward& planned) {
  std::vector<std::vector<int>> groups;
  for (const RowGroup& group : planned.groups) {
    if (!groups.empty() && groups.back()[1] == group.begin &&
        groups.back()[2] == group.enter_layer) {
      groups.back()[1] = group.end;
    } else {
      groups.push_back({group.begin, group.end, group.enter_layer});
    }
  }
  return groups;
}

/// The model with the ids that a trace has for end tokens: those of LLaDA are literals in its code.
ModelInfo model_of(const json& trace, const Denoiser& denoiser) {
  ModelInfo model = denoiser.info();
  const json& params = trace.at("params");
  if (params.contains("eos_id")) model.end_tokens = {params["eos_id"], params.at("eot_id")};
  // The forward knows no blocks: they are the groups' key ends.
  if (is_block_causal(trace)) model.attention_block = params.at("block_length");
  return model;
}

/// Slabs and entry of one case, given back however it ends.
class Lease {
 public:
  explicit Lease(Denoiser& denoiser) : denoiser_(denoiser) {}
  ~Lease() {
    if (slab != kNoId) denoiser_.close_slab(slab);
    if (guide != kNoId) denoiser_.close_slab(guide);
    if (entry != kNoId) denoiser_.destroy_entry(entry);
  }
  SlabId open(int num_tokens) {
    const std::optional<SlabId> id = denoiser_.open_slab(num_tokens);
    if (!id) throw Mismatch{"the KV pool has no room for " + std::to_string(num_tokens)};
    return *id;
  }

  SlabId slab = kNoId, guide = kNoId;
  EntryId entry = kNoId;

 private:
  Denoiser& denoiser_;
};

/// The entry of a prefix, by the forward that the server runs for it.
void make_entry(Denoiser& denoiser, Lease& lease, std::span<const TokenId> prefix) {
  const int num_layers = denoiser.info().num_layers;
  EntrySpec spec{static_cast<int>(prefix.size()), num_layers, {}};
  for (int b = 1; b < num_layers; ++b) spec.boundaries.push_back(b);
  lease.entry = denoiser.create_entry(spec);
  Lease own(denoiser);
  own.slab = own.open(spec.prefix_len);
  Forward forward;
  append_prefix_entry(forward, prefix, own.slab, lease.entry, num_layers, 0);
  denoiser.run(forward);
  denoiser.fill_entry(lease.entry, own.slab);
}

/// The number that a trace gives for a decision by its algorithm; that of a block's first position
/// is always the probability.
double score_of(const json& trace, const json& step, const RowResult& result) {
  const std::string algorithm = trace.at("algorithm");
  const bool is_first = trace.at("cache") != "none" && step.at("forward") == "full";
  if (algorithm == "topk_margin" && !is_first) return result.margin;
  if (algorithm == "entropy" && !is_first) return -result.entropy;
  return result.confidence;
}

/// What the model says of the open positions of the block.
std::map<int, RowResult> by_position(const CanvasDecoder& decoder, bool is_guided,
                                     const std::vector<RowResult>& results) {
  std::map<int, RowResult> found;
  const size_t stride = is_guided ? 2 : 1;
  for (const int position : decoder.open_positions()) {
    const size_t at = found.size() * stride;
    if (at < results.size()) found[position] = results[at];
  }
  return found;
}

void check_rows(const json& step, const PlannedForward& planned, int num_layers) {
  expect_equal("step " + step.at("step").dump() + " rows", groups_of(planned),
               groups_of(step, num_layers));
}

/// `results`: what the model said by position, of the forward that led to these decisions.
void check_commits(const json& trace, const json& step, const std::vector<Commit>& got,
                   const std::map<int, RowResult>& results) {
  // READMEs of the folders: 2e-4 for the references, 1e-4 for the traces of BiCache.
  const double tolerance = trace.contains("entry") ? 1e-4 : 2e-4;
  const std::string where = "step " + step.at("step").dump() + " ";
  json want = step.at("commits");
  for (const json& edit : step.value("edits", json::array())) want.push_back(edit);
  std::vector<std::vector<int>> got_tokens, want_tokens;
  for (const Commit& c : got) got_tokens.push_back({c.position, c.token});
  for (const json& c : want) want_tokens.push_back({c[0], c[1]});
  expect_equal(where + "commits", got_tokens, want_tokens);
  for (size_t i = 0; i < got.size(); ++i) {
    const double confidence = want[i][2];
    const double found = score_of(trace, step, results.at(got[i].position));
    if (std::abs(found - confidence) > tolerance) {
      throw Mismatch{where + "confidence at position " + std::to_string(got[i].position) + " is " +
                     std::to_string(found) + ", expected " + std::to_string(confidence)};
    }
  }
}

void check_trace(const json& trace, Denoiser& denoiser) {
  // The READMEs' tolerances and margins of decisions are float32's.
  if (denoiser.info().dtype != "float32") throw MissingFeature{"a tolerance for bfloat16"};
  const GenerateRequest request = request_of(trace);
  const json& params = trace.at("params");
  Reuse reuse;
  reuse.intra_cache = *request.decode.intra_cache;
  Lease lease(denoiser);
  if (trace.contains("entry")) {
    reuse.prefix_len = params.at("prefix_len");
    reuse.depth = reuse.refresh_depth = params.at("depth");
    reuse.refresh_interval = std::max(1, params.value("refresh_interval", 1));
    reuse.refresh_commits = request.gen_length + 1;
  }
  if (reuse.depth > 0) {
    make_entry(denoiser, lease,
               std::span(request.prompt_ids).first(static_cast<size_t>(reuse.prefix_len)));
  }
  const ModelInfo model = model_of(trace, denoiser);
  CanvasDecoder decoder(request, model, reuse);
  lease.slab = lease.open(decoder.canvas().length());
  if (is_guided(request)) lease.guide = lease.open(decoder.canvas().length());
  if (reuse.depth > 0) denoiser.load_entry(lease.entry, lease.slab, reuse.depth);

  const json steps = joined_steps(trace);
  size_t num_forwards = 0;
  for (; !decoder.finished(); ++num_forwards) {
    if (num_forwards == steps.size()) {
      throw Mismatch{"more forwards than the " + std::to_string(num_forwards) + " expected"};
    }
    const PlannedForward planned = decoder.next();
    Forward forward;
    decoder.append_to(forward, {lease.slab, lease.guide}, {lease.entry});
    const std::vector<RowResult> results = denoiser.run(forward);
    const auto found = by_position(decoder, is_guided(request), results);
    decoder.commit(results);
    check_rows(steps[num_forwards], planned, model.num_layers);
    check_commits(trace, steps[num_forwards], decoder.last_commits(), found);
  }
  expect_equal("number of forwards", num_forwards, steps.size());
  expect_equal("output", decoder.canvas().tokens(),
               trace.at("output_ids").get<std::vector<TokenId>>());
  if (trace.contains("row_layers")) {
    expect_equal("row_layers", decoder.stats().row_layers, trace["row_layers"].get<int64_t>());
  }
}

void check_trace_file(const fs::path& folder, const fs::path& path, Checkpoints& checkpoints,
                      Report& report) {
  const std::string name = folder.filename().string() + "/traces/" + path.stem().string();
  try {
    const json trace = read_json(path);
    const bool quirk = trace.contains("known_reference_quirk");
    Denoiser* denoiser = checkpoints.find(trace.at("checkpoint"), trace.at("family"));
    if (!denoiser) throw MissingFeature{"family " + trace.at("family").get<std::string>()};
    try {
      check_trace(trace, *denoiser);
      quirk ? report.quirk(name, true, trace["known_reference_quirk"]) : report.pass(name);
    } catch (const Mismatch& mismatch) {
      quirk ? report.quirk(name, false, mismatch.what) : report.fail(name, mismatch.what);
    }
  } catch (const MissingFeature& feature) {
    report.skip(name, feature.name);
  } catch (const std::exception& e) {
    report.fail(name, e.what());
  }
}

/// A row of Dream's schedule: tokens of the steps, and the probability of a position in each.
void check_timesteps(const json& row) {
  const double eps = row.at("eps");
  BlockProgress progress{0, row.at("steps"), row.at("masks"), row.at("masks")};
  progress.schedule = Schedule::kTimesteps;
  std::vector<int> got;
  for (; progress.step < progress.num_steps; ++progress.step) {
    const double want = row.at("p_transfer")[static_cast<size_t>(progress.step)];
    const float share = step_share(progress, eps);
    if (std::abs(share - want) > 1e-6) {
      throw Mismatch{"the share of step " + std::to_string(progress.step) + " is " +
                     std::to_string(share) + ", expected " + std::to_string(want)};
    }
    got.push_back(step_quota(progress, eps));
    progress.num_masked -= got.back();
  }
  expect_equal("tokens a step", got, row.at("tokens").get<std::vector<int>>());
}

/// schedules.json: how many tokens each step decides.
void check_schedules(const fs::path& folder, Report& report) {
  const fs::path path = folder / "schedules" / "schedules.json";
  if (!fs::exists(path)) return;
  const json schedules = read_json(path);
  const auto unmasker = make_unmasker({});
  for (const json& row : schedules.at("llada_quota")) {
    const std::string name = folder.filename().string() + "/schedules/llada_quota m" +
                             row.at("masks").dump() + " s" + row.at("steps").dump();
    std::vector<int> got;
    BlockProgress progress{0, row.at("steps"), row.at("masks"), row.at("masks")};
    for (; progress.step < progress.num_steps; ++progress.step) {
      got.push_back(unmasker->min_choices(progress));
      progress.num_masked -= got.back();
    }
    const auto want = row.at("tokens").get<std::vector<int>>();
    got == want ? report.pass(name)
                : report.fail(name, "tokens a step are " + json(got).dump() + ", expected " +
                                        json(want).dump());
  }
  if (!schedules.contains("dream")) return;
  for (const json& row : schedules["dream"]) {
    const std::string name = folder.filename().string() + "/schedules/dream m" +
                             row.at("masks").dump() + " s" + row.at("steps").dump();
    run_case(name, report, [&] { check_timesteps(row); });
  }
}

}  // namespace

void check_traces(const fs::path& folder, Report& report) {
  check_schedules(folder, report);
  if (!fs::is_directory(folder / "traces")) return;
  Checkpoints checkpoints(folder / "checkpoints");
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder / "traces")) {
    if (entry.path().extension() == ".json") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  for (const fs::path& path : paths) check_trace_file(folder, path, checkpoints, report);
}
