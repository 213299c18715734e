#include "http/cache_json.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace bicached {
namespace {

using Json = nlohmann::ordered_json;

/// Seconds, probabilities and fading counts: more digits would only look exact.
double rounded(double value) { return std::round(value * 1000) / 1000; }

Json ladder_json(const std::vector<LadderStep>& ladder, Tally LadderStep::* tally) {
  Json steps = Json::array();
  for (const LadderStep& step : ladder) {
    Json out;
    out["value"] = step.value;
    out["probed"] = rounded((step.*tally).num);
    out["disagreed"] = rounded((step.*tally).bad);
    out["estimated_disagreement"] = rounded(estimated_disagreement(step));
    steps.push_back(std::move(out));
  }
  return steps;
}

Json probes_json(const std::vector<ProbeReport>& probes, Tally LadderStep::* tally) {
  Json list = Json::array();
  for (const ProbeReport& probe : probes) list.push_back(probe_json(probe, tally));
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
  out["probes"] = probes_json(entry.probes, &LadderStep::own);
  return out;
}

}  // namespace

Json probe_json(const ProbeReport& report, Tally LadderStep::* tally) {
  Json out;
  if (report.min_ratio_percent) out["min_ratio_percent"] = *report.min_ratio_percent;
  out["gen_length"] = report.gen_length;
  out["depth"] = report.depth;
  out["refresh_depth"] = report.refresh_depth;
  out["depths"] = ladder_json(report.depths, tally);
  out["refresh_depths"] = ladder_json(report.refresh_depths, tally);
  return out;
}

Json cache_json(const CacheReport& report) {
  Json out;
  out["policy"] = report.policy;
  out["budget_bytes"] = report.budget_bytes;
  out["bytes"] = report.bytes;
  out["hits"] = report.hits;
  out["misses"] = report.misses;
  out["made"] = report.made;
  out["evictions"] = report.evictions;
  out["refused"] = report.refused;
  out["probes"] = report.probes;
  out["probes_running"] = report.probes_running;
  out["entries"] = Json::array();
  for (const EntryReport& entry : report.entries) out["entries"].push_back(entry_json(entry));
  out["model_probes"] = probes_json(report.model_probes, &LadderStep::model);
  return out;
}

}  // namespace bicached
