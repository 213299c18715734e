#include <algorithm>
#include <cstdio>

#include "lab/eval_report.h"

namespace bicached {
namespace {

using Json = nlohmann::ordered_json;
using Row = std::vector<std::string>;

std::string number(double value, int decimals) {
  char buffer[48];
  std::snprintf(buffer, sizeof buffer, "%.*f", decimals, value);
  return buffer;
}

std::string percent(double share) { return number(100 * share, 2); }

std::string ratio(double value, double reference) {
  return reference > 0 ? number(value / reference, 3) : "-";
}

/// "+0.50 [-0.20, +1.20]", in points.
std::string points(const PairedDifference& difference) {
  char buffer[80];
  std::snprintf(buffer, sizeof buffer, "%+.2f [%+.2f, %+.2f]", 100 * difference.mean,
                100 * difference.low, 100 * difference.high);
  return buffer;
}

/// Columns aligned: the first `num_left` to the left, the others to the right.
std::string aligned(const std::vector<Row>& rows, size_t num_left) {
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const Row& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const Row& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - row[i].size(), ' ');
      text += (i == 0 ? "" : "  ") + (i < num_left ? row[i] + space : space + row[i]);
    }
    text += '\n';
  }
  return text;
}

Row in_one(std::initializer_list<Row> parts) {
  Row row;
  for (const Row& part : parts) row.insert(row.end(), part.begin(), part.end());
  return row;
}

Row quality_cells(const EvalQuality& quality, bool is_reference) {
  return {std::to_string(quality.num), percent(quality.accuracy),
          is_reference ? "reference" : points(quality.difference), percent(quality.agreement),
          number(quality.mean_depth, 2)};
}

Row quality_heads(const std::string& reference) {
  return {"n", "accuracy %", "points to " + reference + " [95 %]", "same as " + reference + " %",
          "depth"};
}

std::string answers_table(const EvalReport& report) {
  const Row heads = quality_heads(report.runs[report.reference].policy);
  std::vector<Row> rows = {in_one({{"policy"}, heads, {"hit %", "failed"}})};
  for (size_t i = 0; i < report.runs.size(); ++i) {
    const EvalSummary& run = report.runs[i];
    rows.push_back(in_one({{run.policy},
                           quality_cells(run.all, i == report.reference),
                           {percent(run.hit_rate), std::to_string(run.num_failed)}}));
  }
  return aligned(rows, 1);
}

std::string cost_table(const EvalReport& report) {
  const EvalSummary& reference = report.runs[report.reference];
  const std::string times = "x " + reference.policy;
  std::vector<Row> rows = {{"policy", "req/s", times, "tokens/s", "forwards", "row-layers/q", times,
                            "probes %", "TTFT p50 ms", "p99 ms", "wall s"}};
  for (const EvalSummary& run : report.runs) {
    const double row_layers = static_cast<double>(run.row_layers);
    rows.push_back({run.policy, number(run.requests_per_s, 3),
                    ratio(run.requests_per_s, reference.requests_per_s),
                    number(run.output_tokens_per_s, 1), std::to_string(run.forwards),
                    number(row_layers / std::max(1, run.all.num), 0),
                    ratio(row_layers, static_cast<double>(reference.row_layers)),
                    percent(static_cast<double>(run.probe_row_layers) / std::max(1.0, row_layers)),
                    number(run.ttft_ms_p50, 1), number(run.ttft_ms_p99, 1), number(run.wall_s, 2)});
  }
  return aligned(rows, 1);
}

std::string families_table(const EvalReport& report) {
  std::vector<Row> rows = {
      in_one({{"family", "policy"}, quality_heads(report.runs[report.reference].policy)})};
  for (const auto& [family, ignored] : report.runs[0].families) {
    for (size_t i = 0; i < report.runs.size(); ++i) {
      const EvalSummary& run = report.runs[i];
      rows.push_back(in_one(
          {{family, run.policy}, quality_cells(run.families.at(family), i == report.reference)}));
    }
  }
  return aligned(rows, 2);
}

void add_quality(const EvalQuality& quality, Json& json) {
  json["num"] = quality.num;
  json["accuracy"] = quality.accuracy;
  json["difference"] = quality.difference.mean;
  json["difference_low"] = quality.difference.low;
  json["difference_high"] = quality.difference.high;
  json["agreement"] = quality.agreement;
  json["mean_depth"] = quality.mean_depth;
}

}  // namespace

std::string eval_report_text(const EvalReport& report, bool by_family) {
  std::string text;
  if (!report.has_off) {
    text += "No run is 'off': differences and ratios are to the first run, " +
            report.runs[report.reference].policy + ".\n\n";
  }
  text += answers_table(report) + '\n' + cost_table(report);
  if (by_family) text += '\n' + families_table(report);
  return text;
}

Json eval_report_json(const EvalReport& report) {
  Json runs = Json::array();
  for (const EvalSummary& run : report.runs) {
    Json json = {{"policy", run.policy}};
    add_quality(run.all, json);
    json["failed"] = run.num_failed;
    json["requests_per_s"] = run.requests_per_s;
    json["output_tokens_per_s"] = run.output_tokens_per_s;
    json["forwards"] = run.forwards;
    json["row_layers"] = run.row_layers;
    json["probe_row_layers"] = run.probe_row_layers;
    json["hit_rate"] = run.hit_rate;
    json["ttft_ms_p50"] = run.ttft_ms_p50;
    json["ttft_ms_p99"] = run.ttft_ms_p99;
    json["wall_s"] = run.wall_s;
    json["families"] = Json::object();
    for (const auto& [family, quality] : run.families) {
      add_quality(quality, json["families"][family]);
    }
    runs.push_back(std::move(json));
  }
  return runs;
}

}  // namespace bicached
