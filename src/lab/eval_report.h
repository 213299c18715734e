#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bicached/request.h"

namespace bicached {

/// What became of one question.
struct EvalAnswer {
  std::vector<TokenId> ids;  // without the end token
  bool is_right = false;
  std::string error;  // not empty: the request failed, which counts as wrong
  GenerationStats stats;
};

/// All questions under one policy, once.
struct EvalRun {
  std::string policy;
  std::vector<EvalAnswer> answers;  // in the order of the questions
  double wall_s = 0;
  // of the engine, entries that are made and probes included
  int64_t forwards = 0;
  int64_t row_layers = 0;
  int64_t probe_row_layers = 0;
};

/// Mean of a paired difference and its 95 % confidence interval, in shares: adjusted Wald (Agresti
/// and Min 2005), which also tells something where few or no questions differ. Questions count as
/// independent.
struct PairedDifference {
  double mean = 0;
  double low = 0;
  double high = 0;
};

/// Accuracy on a set of questions, and against the reference run.
struct EvalQuality {
  int num = 0;
  double accuracy = 0;          // share
  PairedDifference difference;  // accuracy minus the reference's
  double agreement = 0;         // share of answers with the reference's very ids
  double mean_depth = 0;        // layers, over requests
};

struct EvalSummary {
  std::string policy;
  EvalQuality all;
  std::map<std::string, EvalQuality> families;
  int num_failed = 0;  // in all rounds
  int64_t forwards = 0;
  int64_t row_layers = 0;
  int64_t probe_row_layers = 0;
  double hit_rate = 0;  // share of requests that found their prefix stored
  // Medians over rounds.
  double requests_per_s = 0;
  double output_tokens_per_s = 0;
  double ttft_ms_p50 = 0;  // from submit to the first token; answers without one left out
  double ttft_ms_p99 = 0;
  double wall_s = 0;
};

struct EvalReport {
  size_t reference = 0;  // index into `runs`: the first `off`, else the first
  bool has_off = false;
  std::vector<EvalSummary> runs;
};

/// Share by share of the difference a[i] - b[i], each -1, 0 or 1, by the normal approximation with
/// the sample's own deviation. One question alone tells nothing: -1 to 1.
PairedDifference paired_difference(const std::vector<bool>& a, const std::vector<bool>& b);

/// The value that a share `p` of the values do not exceed (nearest rank); 0 without values.
double percentile(std::vector<double> values, double p);
/// The middle value, or the mean of the middle two; 0 without values.
double median(std::vector<double> values);

/// `rounds[r][i]`: run i of round r, the same policies in every round; `families[q]`: of question
/// q. Speeds are medians over rounds; all else but `num_failed` is the first round's.
EvalReport make_eval_report(const std::vector<std::vector<EvalRun>>& rounds,
                            const std::vector<std::string>& families);

/// Tables for people: answers, cost, and with `by_family` answers by family.
std::string eval_report_text(const EvalReport& report, bool by_family);

/// The list `runs` of the JSON file. Accuracy, agreement and difference are shares.
nlohmann::ordered_json eval_report_json(const EvalReport& report);

}  // namespace bicached
