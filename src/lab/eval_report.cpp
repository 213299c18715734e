#include "lab/eval_report.h"

#include <algorithm>
#include <cmath>

namespace bicached {
namespace {

double share(size_t part, size_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

double per_second(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

bool agree(const EvalAnswer& a, const EvalAnswer& b) {
  return a.error.empty() && b.error.empty() && a.ids == b.ids;
}

/// Quality on the questions with these indices.
EvalQuality quality_of(const EvalRun& run, const EvalRun& reference,
                       const std::vector<size_t>& questions) {
  EvalQuality quality;
  quality.num = static_cast<int>(questions.size());
  std::vector<bool> right, reference_right;
  size_t num_equal = 0;
  double depths = 0;
  for (const size_t q : questions) {
    right.push_back(run.answers[q].is_right);
    reference_right.push_back(reference.answers[q].is_right);
    num_equal += agree(run.answers[q], reference.answers[q]);
    depths += run.answers[q].stats.depth;
  }
  const auto num_right = static_cast<size_t>(std::count(right.begin(), right.end(), true));
  quality.accuracy = share(num_right, questions.size());
  quality.agreement = share(num_equal, questions.size());
  quality.mean_depth = questions.empty() ? 0 : depths / static_cast<double>(questions.size());
  quality.difference = paired_difference(right, reference_right);
  if (&run == &reference) quality.difference = {};  // exactly, also of a single question
  return quality;
}

int num_failed(const EvalRun& run) {
  return static_cast<int>(std::ranges::count_if(
      run.answers, [](const EvalAnswer& answer) { return !answer.error.empty(); }));
}

double hit_rate(const EvalRun& run) {
  const auto num_hits = std::ranges::count_if(
      run.answers, [](const EvalAnswer& answer) { return answer.stats.cache == "hit"; });
  return share(static_cast<size_t>(num_hits), run.answers.size());
}

/// Medians over the rounds of run `i`.
void add_speeds(const std::vector<std::vector<EvalRun>>& rounds, size_t i, EvalSummary& summary) {
  std::vector<double> requests, tokens, p50, p99, walls;
  for (const std::vector<EvalRun>& round : rounds) {
    const EvalRun& run = round[i];
    int64_t num_tokens = 0, num_answered = 0;
    std::vector<double> first_tokens_ms;
    for (const EvalAnswer& answer : run.answers) {
      if (!answer.error.empty()) continue;
      ++num_answered;
      num_tokens += answer.stats.completion_tokens;
      if (answer.stats.first_token_us == 0) continue;
      first_tokens_ms.push_back(static_cast<double>(answer.stats.first_token_us) / 1000);
    }
    requests.push_back(per_second(num_answered, run.wall_s));
    tokens.push_back(per_second(num_tokens, run.wall_s));
    p50.push_back(percentile(first_tokens_ms, 0.5));
    p99.push_back(percentile(first_tokens_ms, 0.99));
    walls.push_back(run.wall_s);
    summary.num_failed += num_failed(run);
  }
  summary.requests_per_s = median(requests);
  summary.output_tokens_per_s = median(tokens);
  summary.ttft_ms_p50 = median(p50);
  summary.ttft_ms_p99 = median(p99);
  summary.wall_s = median(walls);
}

}  // namespace

PairedDifference paired_difference(const std::vector<bool>& a, const std::vector<bool>& b) {
  if (a.empty()) return {};
  double only_a = 0, only_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    only_a += a[i] && !b[i];
    only_b += b[i] && !a[i];
  }
  const double mean = (only_a - only_b) / static_cast<double>(a.size());
  // Half a question more in each of the four cells.
  const double num = static_cast<double>(a.size()) + 2;
  const double differ = only_a + only_b + 1;
  const double centre = (only_a - only_b) / num;
  const double half = 1.96 * std::sqrt(differ - (only_a - only_b) * centre) / num;
  return {mean, std::max(-1.0, centre - half), std::min(1.0, centre + half)};
}

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(std::ceil(p * static_cast<double>(values.size())));
  return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

EvalReport make_eval_report(const std::vector<std::vector<EvalRun>>& rounds,
                            const std::vector<std::string>& families) {
  EvalReport report;
  const std::vector<EvalRun>& first = rounds.front();
  const auto off = std::ranges::find(first, "off", &EvalRun::policy);
  report.has_off = off != first.end();
  report.reference = report.has_off ? static_cast<size_t>(off - first.begin()) : 0;
  const EvalRun& reference = first[report.reference];

  std::vector<size_t> all;
  std::map<std::string, std::vector<size_t>> by_family;
  for (size_t q = 0; q < families.size(); ++q) {
    all.push_back(q);
    by_family[families[q]].push_back(q);
  }
  for (size_t i = 0; i < first.size(); ++i) {
    const EvalRun& run = first[i];
    EvalSummary summary;
    summary.policy = run.policy;
    summary.all = quality_of(run, reference, all);
    for (const auto& [family, questions] : by_family) {
      summary.families[family] = quality_of(run, reference, questions);
    }
    summary.forwards = run.forwards;
    summary.row_layers = run.row_layers;
    summary.probe_row_layers = run.probe_row_layers;
    summary.hit_rate = hit_rate(run);
    add_speeds(rounds, i, summary);
    report.runs.push_back(std::move(summary));
  }
  return report;
}

}  // namespace bicached
