// What ReuseLearner tells operators, and the file in `state_dir` that it outlives a restart in.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "bicached/error.h"
#include "cache_index/reuse_learner.h"

namespace bicached {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "bicached probes 2";
/// Twice what the most records take.
constexpr JsonLimits kFileLimits{size_t{16} << 20, 8};
/// More than requests can name.
constexpr size_t kMaxKinds = 4096;

bool parse_hex(const std::string& text, Hash128& hash) {
  unsigned long long high = 0, low = 0;
  if (text.size() != 32 || std::sscanf(text.c_str(), "%16llx%16llx", &high, &low) != 2)
    return false;
  hash = {low, high};
  return true;
}

Json write_outcomes(const Outcomes& outcomes) {
  Json steps = Json::array();
  for (int step = 0; step < outcomes.num_steps(); ++step) {
    steps.push_back({outcomes.at(step).agreed, outcomes.at(step).differed});
  }
  return steps;
}

/// Those of another ladder are of no use.
void read_outcomes(const Json& record, const char* name, Outcomes& outcomes) {
  const auto steps = record.find(name);
  if (steps == record.end() || !steps->is_array() ||
      static_cast<int>(steps->size()) != outcomes.num_steps()) {
    return;
  }
  for (int step = 0; step < outcomes.num_steps(); ++step) {
    const Json& pair = (*steps)[static_cast<size_t>(step)];
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_number() || !pair[1].is_number()) {
      continue;
    }
    outcomes.add(step, {pair[0].get<double>(), pair[1].get<double>()});
  }
}

std::string read_text(const Json& record, const char* name) {
  const auto it = record.find(name);
  return it != record.end() && it->is_string() ? it->get<std::string>() : "";
}

/// Not negative; 0 for what is none.
double read_number(const Json& record, const char* name) {
  const auto it = record.find(name);
  const double value = it != record.end() && it->is_number() ? it->get<double>() : 0;
  return value > 0 && value < 1e15 ? value : 0;
}

template <class Ladders>
Json write_ladders(const Ladders& ladders) {
  return {{"uses", ladders.inside.uses},
          {"shared_uses", ladders.shared.uses},
          {"inside", write_outcomes(ladders.inside.outcomes)},
          {"shared", write_outcomes(ladders.shared.outcomes)}};
}

template <class Ladders>
void read_ladders(const Json& record, Ladders& ladders) {
  const auto found = record.find("ladders");
  if (found == record.end() || !found->is_object()) return;
  ladders.inside.uses = read_number(*found, "uses");
  ladders.shared.uses = read_number(*found, "shared_uses");
  read_outcomes(*found, "inside", ladders.inside.outcomes);
  read_outcomes(*found, "shared", ladders.shared.outcomes);
}

}  // namespace

PlanReport ReuseLearner::describe(const std::string& kind, const Ladders& ladders) const {
  PlanReport report{kind, {}};
  const auto add = [&](const Outcomes& outcomes, int step) -> PlanReport::Step& {
    PlanReport::Step& out = report.steps.emplace_back();
    out.agreed = outcomes.at(step).agreed;
    out.differed = outcomes.at(step).differed;
    out.estimate = outcomes.estimate(step);
    out.is_safe = step <= outcomes.safe_step(settings_.max_disagreement);
    return out;
  };
  const Outcomes &inside = ladders.inside.outcomes, &shared = ladders.shared.outcomes;
  for (int step = 1; step < inside.num_steps(); ++step)
    add(inside, step).inside = plans_[static_cast<size_t>(step)];
  for (int step = 0; step < shared.num_steps(); ++step) add(shared, step).depth = depth_step(step);
  return report;
}

std::vector<PlanReport> ReuseLearner::report(const Hash128& prefix) const {
  std::vector<PlanReport> reports;
  for (auto it = by_key_.lower_bound({prefix, ""});
       it != by_key_.end() && it->first.first == prefix; ++it) {
    reports.push_back(describe(it->first.second, it->second->own));
  }
  return reports;
}

std::vector<PlanReport> ReuseLearner::report_model() const {
  std::vector<PlanReport> reports;
  for (const auto& [name, kind] : kinds_) reports.push_back(describe(name, kind.all));
  return reports;
}

std::string ReuseLearner::to_json() const {
  Json file = {{"format", kFormat},
               {"depths", settings_.depths},
               {"num_plans", plans_.size()},
               {"kinds", Json::array()},
               {"prefixes", Json::array()}};
  for (const auto& [name, kind] : kinds_) {
    file["kinds"].push_back({{"kind", name},
                             {"requests", kind.course.num},
                             {"forwards", kind.course.forwards},
                             {"blocks", kind.course.blocks},
                             {"text_forwards", kind.course.text_forwards},
                             {"ladders", write_ladders(kind.all)}});
  }
  for (const Prefix& prefix : prefixes_) {
    file["prefixes"].push_back({{"prefix", prefix.key.first.hex()},
                                {"kind", prefix.key.second},
                                {"ladders", write_ladders(prefix.own)}});
  }
  return file.dump();
}

void ReuseLearner::from_json(const std::string& text, const std::string& path) {
  const Json file = parse_json_text(text, path, ErrorCode::kInvalidSettings, kFileLimits);
  if (!file.is_object() || read_text(file, "format") != kFormat) {
    throw Error(ErrorCode::kInvalidSettings,
                path + ": no file of probe outcomes (\"format\": \"" + kFormat + "\")",
                "state_dir");
  }
  if (file.value("depths", Json()) != Json(settings_.depths)) return;
  const auto records = [&](const char* name) {
    const auto it = file.find(name);
    return it != file.end() && it->is_array() ? *it : Json::array();
  };
  for (const Json& record : records("kinds")) {
    if (!record.is_object() || kinds_.size() >= kMaxKinds) continue;
    Kind& kind = kind_of(read_text(record, "kind"));
    kind.course = {read_number(record, "requests"), read_number(record, "forwards"),
                   read_number(record, "blocks"), read_number(record, "text_forwards")};
    read_ladders(record, kind.all);
  }
  // The one used last stands first.
  const Json prefixes = records("prefixes");
  for (auto record = prefixes.rbegin(); record != prefixes.rend(); ++record) {
    Hash128 prefix;
    if (!record->is_object() || !parse_hex(read_text(*record, "prefix"), prefix)) continue;
    read_ladders(*record, ladders_of({prefix, read_text(*record, "kind")}));
  }
}

}  // namespace bicached
