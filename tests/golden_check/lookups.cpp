// lookups.json: ratios and look-ups in depth tables. Its keys and order of eviction are the
// published store's; ours is another one (DESIGN 6).
#include <map>

#include "cache_index/depth/depth_table.h"
#include "golden_check/golden_case.h"
#include "golden_check/report.h"

namespace {

using namespace bicached;
using nlohmann::json;
namespace fs = std::filesystem;

void expect_number(const char* what, int got, int want) {
  if (got == want) return;
  throw Mismatch{std::string(what) + " is " + std::to_string(got) + ", expected " +
                 std::to_string(want)};
}

DepthTable read_table(const json& steps) {
  DepthTable table;
  std::map<int, int> by_ratio;  // the file's keys are text, "5" after "10"
  for (const auto& [ratio, depth] : steps.items()) by_ratio[std::stoi(ratio)] = depth;
  for (const auto& [ratio, depth] : by_ratio) table.steps.push_back({ratio, depth});
  return table;
}

}  // namespace

void check_lookups(const fs::path& folder, Report& report) {
  if (!fs::exists(folder / "lookups.json")) return;
  const json lookups = read_json(folder / "lookups.json");
  const std::string name = folder.filename().string() + "/lookups/";
  for (const json& row : lookups.at("ratios")) {
    run_case(name + "ratio " + row[0].dump() + " of " + row[1].dump(), report,
             [&] { expect_number("the ratio", ratio_percent(row[0], row[1]), row[2]); });
  }
  std::vector<DepthTable> tables;
  for (const json& steps : lookups.at("tables")) tables.push_back(read_table(steps));
  for (const json& row : lookups.at("table_lookups")) {
    run_case(name + "table " + row[0].dump() + " at " + row[1].dump(), report, [&] {
      // The published engine fails below the first ratio; here nothing is reused there.
      const int want = row[2].is_null() ? 0 : row[2].get<int>();
      expect_number("the depth", tables.at(row[0]).depth_at(row[1]), want);
    });
  }
}
