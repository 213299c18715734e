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

/// What a trace file asks for, in the server's own terms.
GenerateRequest request_of(const json& trace) {
  const json& params = trace.at("params");
  const auto number = [&](const char* name) {
    return params.contains(name) && params[name].is_number() ? params[name].get<double>() : 0.0;
  };
  if (number("cfg_scale") > 0) throw MissingFeature{"classifier-free guidance"};
  for (const char* flag : {"logits_eos_inf", "confidence_eos_eot_inf"}) {
    if (params.value(flag, false)) throw MissingFeature{flag};
  }

  GenerateRequest request;
  request.prompt_ids = trace.at("prompt_ids").get<std::vector<TokenId>>();
  request.gen_length = params.at("gen_length");
  DecodeParams& decode = request.decode;
  const std::string algorithm = trace.at("algorithm"), schedule = trace.at("schedule");
  decode.algorithm = schedule == "quota" ? algorithm : schedule;
  const auto names = unmasker_names();
  if (std::find(names.begin(), names.end(), decode.algorithm) == names.end()) {
    throw MissingFeature{"algorithm " + decode.algorithm};
  }
  decode.block_length = params.value("block_length", request.gen_length);
  decode.steps = params.at("steps");
  for (const char* name : {"threshold", "factor"}) {
    if (number(name) > 0) decode.params[name] = number(name);
  }
  decode.eos_early_stop = false;
  const std::string cache = trace.at("cache");
  decode.intra_cache = cache == "prefix"                         ? IntraCache::kPrefix
                       : cache.find("dual") != std::string::npos ? IntraCache::kDual
                                                                 : IntraCache::kNone;
  // The published engine throws the first forward's logits away where a trace does not say.
  if (trace.contains("entry")) {
    decode.use_first_forward = params.value("first_forward", json()) == "use";
    request.cache.refresh_by_step_modulo = params.value("refresh_rule", "") == "step_modulo";
  }
  // Some references run steps that decide nothing; the trace shows whether this one did.
  for (const json& step : trace.at("steps")) {
    const bool thrown_away = decode.intra_cache == IntraCache::kDual && !decode.use_first_forward &&
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

std::vector<std::vector<int>> groups_of(const PlannedForward& planned) {
  std::vector<std::vector<int>> groups;
  for (const RowGroup& group : planned.groups) {
    groups.push_back({group.begin, group.end, group.enter_layer});
  }
  return groups;
}

/// Slab and entry of one case, given back however it ends.
class Lease {
 public:
  explicit Lease(Denoiser& denoiser) : denoiser_(denoiser) {}
  ~Lease() {
    if (slab != kNoId) denoiser_.close_slab(slab);
    if (entry != kNoId) denoiser_.destroy_entry(entry);
  }
  SlabId open(int num_tokens) {
    const std::optional<SlabId> id = denoiser_.open_slab(num_tokens);
    if (!id) throw Mismatch{"the KV pool has no room for " + std::to_string(num_tokens)};
    return *id;
  }

  SlabId slab = kNoId;
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
  forward.groups.push_back(prefix_entry_group(prefix, own.slab, lease.entry, num_layers));
  denoiser.run(forward);
  denoiser.fill_entry(lease.entry, own.slab);
}

void check_step(const json& step, const PlannedForward& planned, const CanvasDecoder& decoder,
                const std::vector<std::vector<int>>& want_groups, double tolerance) {
  const std::string where = "step " + step.at("step").dump() + " ";
  expect_equal(where + "rows", groups_of(planned), want_groups);
  const json& want = step.at("commits");
  const auto& got = decoder.last_commits();
  std::vector<std::vector<int>> got_tokens, want_tokens;
  for (const Commit& c : got) got_tokens.push_back({c.position, c.token});
  for (const json& c : want) want_tokens.push_back({c[0], c[1]});
  expect_equal(where + "commits", got_tokens, want_tokens);
  for (size_t i = 0; i < got.size(); ++i) {
    const double confidence = want[i][2];
    if (std::abs(got[i].probability - confidence) > tolerance) {
      throw Mismatch{where + "confidence at position " + std::to_string(got[i].position) + " is " +
                     std::to_string(got[i].probability) + ", expected " +
                     std::to_string(confidence)};
    }
  }
}

void check_trace(const json& trace, Denoiser& denoiser) {
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
  CanvasDecoder decoder(request, denoiser.info(), reuse);
  lease.slab = lease.open(decoder.canvas().length());
  if (reuse.depth > 0) denoiser.load_entry(lease.entry, lease.slab, reuse.depth);

  // READMEs of the folders: 2e-4 for the references, 1e-4 for the traces of BiCache.
  const double tolerance = trace.contains("entry") ? 1e-4 : 2e-4;
  const json& steps = trace.at("steps");
  size_t num_forwards = 0;
  for (; !decoder.finished(); ++num_forwards) {
    if (num_forwards == steps.size()) {
      throw Mismatch{"more forwards than the " + std::to_string(num_forwards) + " expected"};
    }
    const PlannedForward planned = decoder.next();
    Forward forward;
    decoder.append_to(forward, lease.slab, {lease.entry});
    decoder.commit(denoiser.run(forward));
    check_step(steps[num_forwards], planned, decoder,
               groups_of(steps[num_forwards], denoiser.info().num_layers), tolerance);
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
    BlockProgress progress{0, row.at("steps"), row.at("masks")};
    for (; progress.step < progress.num_steps; ++progress.step) {
      got.push_back(unmasker->min_choices(progress));
    }
    const auto want = row.at("tokens").get<std::vector<int>>();
    got == want ? report.pass(name)
                : report.fail(name, "tokens a step are " + json(got).dump() + ", expected " +
                                        json(want).dump());
  }
  if (schedules.contains("dream")) {
    report.skip(folder.filename().string() + "/schedules/dream", "family dream");
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
