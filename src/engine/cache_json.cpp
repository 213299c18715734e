#include "engine/cache_json.h"

#include <climits>
#include <cmath>
#include <nlohmann/json.hpp>

#include "config/decode_defaults.h"

namespace bicached {
namespace {

using Json = nlohmann::ordered_json;

/// Seconds, probabilities and fading counts: more digits would only look exact.
double rounded(double value) { return std::round(value * 1000) / 1000; }

Json plan_json(const InsidePlan& plan) {
  Json out;
  out["intra_cache"] = intra_cache_name(plan.intra_cache);
  if (plan.intra_cache == IntraCache::kNone) return out;
  out["refresh_interval"] = plan.refresh_interval;
  out["refresh_commits"] = plan.refresh_commits == INT_MAX ? Json() : Json(plan.refresh_commits);
  out["refresh_depth"] = plan.refresh_depth;
  return out;
}

Json probes_json(const std::vector<PlanReport>& probes) {
  Json list = Json::array();
  for (const PlanReport& probe : probes) list.push_back(probe_json(probe));
  return list;
}

Json entry_json(const EntryReport& entry) {
  Json out;
  out["id"] = entry.id;
  out["salt"] = entry.salt;
  out["tokens"] = entry.num_tokens;
  out["bytes"] = entry.bytes;
  out["hits"] = entry.hits;
  out["in_use"] = entry.num_users;
  out["pinned"] = entry.pinned;
  out["ready"] = entry.ready;
  out["saved_row_layers"] = entry.saved_row_layers;
  out["age_s"] = rounded(entry.age_s);
  out["idle_s"] = rounded(entry.idle_s);
  out["depths"] = entry.depths;
  out["probes"] = probes_json(entry.probes);
  return out;
}

}  // namespace

Json probe_json(const PlanReport& report) {
  Json out;
  out["kind"] = report.kind;
  out["plans"] = Json::array();
  for (const PlanReport::Step& step : report.steps) {
    Json plan;
    if (step.depth) plan["depth"] = *step.depth;
    if (step.inside) plan["inside"] = plan_json(*step.inside);
    plan["agreed"] = rounded(step.agreed);
    plan["differed"] = rounded(step.differed);
    plan["estimated_disagreement"] = rounded(step.estimate);
    plan["safe"] = step.is_safe;
    out["plans"].push_back(std::move(plan));
  }
  return out;
}

Json cache_json(const CacheReport& report) {
  Json out;
  out["policy"] = report.policy;
  out["start"] = report.start;
  out["budget_bytes"] = report.budget_bytes;
  out["bytes"] = report.bytes;
  out["num_entries"] = report.num_entries;
  out["hits"] = report.hits;
  out["misses"] = report.misses;
  out["made"] = report.made;
  out["evictions"] = report.evictions;
  out["refused"] = report.refused;
  out["probes"] = report.probes;
  out["probes_running"] = report.probes_running;
  out["entries"] = Json::array();
  for (const EntryReport& entry : report.entries) out["entries"].push_back(entry_json(entry));
  out["model_probes"] = probes_json(report.model_probes);
  return out;
}

}  // namespace bicached
