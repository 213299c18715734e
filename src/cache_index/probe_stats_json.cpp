// The file of probe outcomes in `state_dir`.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "bicached/error.h"
#include "cache_index/probe_stats.h"

namespace bicached {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "bicached probes 1";
/// Twice what the most records take.
constexpr JsonLimits kFileLimits{size_t{64} << 20, 8};

bool parse_hex(const std::string& text, Hash128& hash) {
  unsigned long long high = 0, low = 0;
  if (text.size() != 32 || std::sscanf(text.c_str(), "%16llx%16llx", &high, &low) != 2)
    return false;
  hash = {low, high};
  return true;
}

Json write_tallies(const std::map<int, Tally>& tallies) {
  Json list = Json::array();
  for (const auto& [value, tally] : tallies) list.push_back({value, tally.bad, tally.num});
  return list;
}

/// Ladder values that are no more, and numbers that can't be, are left out.
std::map<int, Tally> read_tallies(const Json& record, const char* name) {
  std::map<int, Tally> tallies;
  const auto list = record.find(name);
  if (list == record.end() || !list->is_array()) return tallies;
  for (const Json& item : *list) {
    if (!item.is_array() || item.size() != 3 || !item[0].is_number_integer() ||
        !item[1].is_number() || !item[2].is_number()) {
      continue;
    }
    const Tally tally{item[1].get<double>(), item[2].get<double>()};
    const bool plausible = tally.bad >= 0 && tally.bad <= tally.num && tally.num < 1e6;
    if (plausible) tallies[item[0].get<int>()] = tally;
  }
  return tallies;
}

int read_int(const Json& record, const char* name) {
  const auto it = record.find(name);
  return it != record.end() && it->is_number_integer() ? it->get<int>() : 0;
}

std::string read_text(const Json& record, const char* name) {
  const auto it = record.find(name);
  return it != record.end() && it->is_string() ? it->get<std::string>() : "";
}

double read_number(const Json& record, const char* name) {
  const auto it = record.find(name);
  return it != record.end() && it->is_number() ? it->get<double>() : 0;
}

}  // namespace

std::string ProbeStats::to_json() const {
  const auto write = [](const CanvasKind& kind, const Tallies& tallies) {
    return Json{{"ratio_percent", kind.ratio_percent},
                {"gen_length", kind.gen_length},
                {"probes", tallies.num_probes},
                {"depths", write_tallies(tallies.depths)},
                {"refresh_depths", write_tallies(tallies.refresh_depths)}};
  };
  Json file = {{"format", kFormat}, {"model", Json::array()}, {"prefixes", Json::array()}};
  for (const auto& [kind, tallies] : model_) file["model"].push_back(write(kind, tallies));
  for (const auto& [key, tallies] : tallies_) {
    Json record = write(key.second, tallies);
    record["prefix"] = key.first.hex();
    file["prefixes"].push_back(std::move(record));
  }
  return file.dump();
}

void ProbeStats::from_json(const std::string& text, const std::string& path) {
  const Json file = parse_json_text(text, path, ErrorCode::kInvalidSettings, kFileLimits);
  if (!file.is_object() || read_text(file, "format") != kFormat) {
    throw Error(
        ErrorCode::kInvalidSettings,
        path + ": is no file of probe outcomes (\"format\": \"" + kFormat + "\"); move it away",
        "state_dir");
  }
  const auto read = [](const Json& record, CanvasKind& kind, Tallies& tallies) {
    if (!record.is_object()) return false;
    kind = {read_int(record, "ratio_percent"), read_int(record, "gen_length")};
    tallies.depths = read_tallies(record, "depths");
    tallies.refresh_depths = read_tallies(record, "refresh_depths");
    tallies.num_probes = read_number(record, "probes");
    return true;
  };
  CanvasKind kind;
  Tallies tallies;
  const auto records = [&](const char* name) {
    const auto it = file.find(name);
    return it != file.end() && it->is_array() ? *it : Json::array();
  };
  for (const Json& record : records("model")) {
    if (read(record, kind, tallies)) model_[kind] = tallies;
  }
  for (const Json& record : records("prefixes")) {
    Hash128 prefix;
    if (!read(record, kind, tallies) || !parse_hex(read_text(record, "prefix"), prefix)) continue;
    tallies_[{prefix, kind}] = tallies;
  }
}

}  // namespace bicached
