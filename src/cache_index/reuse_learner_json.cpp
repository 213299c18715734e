// What ReuseLearner tells operators, and the file in `state_dir` that it outlives a restart in.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "bicached/error.h"
#include "cache_index/reuse_learner.h"
#include "config/reuse_start.h"

namespace bicached {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "bicached probes 3";
/// Twice what the most records take.
constexpr JsonLimits kFileLimits{size_t{16} << 20, 8};

bool parse_hex(const std::string& text, Hash128& hash) {
  unsigned long long high = 0, low = 0;
  if (text.size() != 32 || std::sscanf(text.c_str(), "%16llx%16llx", &high, &low) != 2)
    return false;
  hash = {low, high};
  return true;
}

std::string read_text(const Json& record, const char* name) {
  const auto it = record.is_object() ? record.find(name) : record.end();
  return it != record.end() && it->is_string() ? it->get<std::string>() : "";
}

/// So many numbers that are not negative; zeros where there is anything else.
std::vector<double> read_numbers(const Json& record, const char* name, size_t size) {
  std::vector<double> numbers(size, 0.0);
  const auto it = record.find(name);
  if (it == record.end() || !it->is_array() || it->size() != size) return numbers;
  for (size_t i = 0; i < size; ++i) {
    const Json& item = (*it)[i];
    const double value = item.is_number() ? item.get<double>() : 0;
    if (value > 0 && value < 1e15) numbers[i] = value;
  }
  return numbers;
}

Json write_outcomes(const Outcomes& outcomes) {
  Json numbers = Json::array();
  for (int step = 0; step < outcomes.num_steps(); ++step) {
    numbers.push_back(outcomes.at(step).agreed);
    numbers.push_back(outcomes.at(step).differed);
  }
  return numbers;
}

void read_outcomes(const Json& record, const char* name, Outcomes& outcomes) {
  const auto numbers = read_numbers(record, name, 2 * static_cast<size_t>(outcomes.num_steps()));
  for (int step = 0; step < outcomes.num_steps(); ++step) {
    const auto i = 2 * static_cast<size_t>(step);
    outcomes.add(step, {numbers[i], numbers[i + 1]});
  }
}

}  // namespace

PlanReport ReuseLearner::describe(const std::string& kind, const Record& record) const {
  PlanReport report{kind, {}};
  const auto add = [&](const Outcomes& outcomes, int step, int safe_step) -> PlanReport::Step& {
    PlanReport::Step& out = report.steps.emplace_back();
    out.agreed = outcomes.at(step).agreed;
    out.differed = outcomes.at(step).differed;
    out.estimate = outcomes.estimate(step);
    out.is_safe = step <= safe_step;
    return out;
  };
  const Outcomes &inside = record.inside.outcomes, &shared = record.shared.outcomes;
  const int safe_inside = inside.safe_step(settings_.max_disagreement);
  for (int step = 1; step < inside.num_steps(); ++step) {
    add(inside, step, safe_inside).inside = inside_step(step);
  }
  const int safe_shared = shared.safe_step(settings_.max_disagreement);
  for (int step = 0; step < shared.num_steps(); ++step) {
    add(shared, step, safe_shared).depth = depth_step(step);
  }
  return report;
}

void ReuseLearner::report(std::map<Hash128, std::vector<PlanReport>>& prefixes) const {
  for (const auto& [key, record] : records_) {
    const auto it = prefixes.find(key.first);
    if (it != prefixes.end()) it->second.push_back(describe(key.second, record));
  }
}

std::string ReuseLearner::ladders() const {
  std::string names;
  for (const InsidePlan& plan : plans_) names += describe_plan(plan) + "; ";
  for (const int depth : depths_) names += "depth " + std::to_string(depth) + "; ";
  return names;
}

std::string ReuseLearner::to_json() const {
  Json records = Json::array();
  for (const auto& [key, record] : records_) {
    const Course& course = record.course;
    records.push_back(
        {{"prefix", key.first.hex()},
         {"kind", key.second},
         {"course", {course.num, course.forwards, course.blocks, course.text_forwards}},
         {"uses", {record.inside.uses, record.shared.uses}},
         {"inside", write_outcomes(record.inside.outcomes)},
         {"shared", write_outcomes(record.shared.outcomes)}});
  }
  return Json{{"format", kFormat}, {"ladders", ladders()}, {"records", records}}.dump();
}

void ReuseLearner::from_json(const std::string& text, const std::string& path) {
  const Json file = parse_json_text(text, path, ErrorCode::kInvalidSettings, kFileLimits);
  if (read_text(file, "format") != kFormat) {
    throw Error(ErrorCode::kInvalidSettings,
                path + ": no file of probe outcomes (\"format\": \"" + kFormat + "\")",
                "state_dir");
  }
  if (read_text(file, "ladders") != ladders()) {
    throw Error(ErrorCode::kInvalidSettings,
                path + ": its plans are not those of this server (\"" + ladders() + "\")",
                "state_dir");
  }
  const Json records = file.value("records", Json());
  if (!records.is_array()) return;
  // The one used last stands first.
  for (auto it = records.rbegin(); it != records.rend(); ++it) {
    Hash128 prefix;
    if (!parse_hex(read_text(*it, "prefix"), prefix)) continue;
    Record& record = touch({prefix, read_text(*it, "kind")});
    const std::vector<double> course = read_numbers(*it, "course", 4);
    const std::vector<double> uses = read_numbers(*it, "uses", 2);
    record.course = {course[0], std::max(course[1], 1.0), course[2], course[3]};
    record.inside.uses = uses[0];
    record.shared.uses = uses[1];
    read_outcomes(*it, "inside", record.inside.outcomes);
    read_outcomes(*it, "shared", record.shared.outcomes);
  }
}

}  // namespace bicached
