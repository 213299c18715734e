#include "app/eval_run.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <string_view>
#include <thread>

#include "bicached/channel.h"

namespace bicached {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxErrorsShown = 5;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// On a terminal a line that counts; elsewhere only its last state, one line a run.
class EvalProgress {
 public:
  EvalProgress(const EvalRunPlan& plan, size_t total)
      : label_(plan.label), total_(total), is_shown_(plan.shows_progress) {}

  void add(bool is_right) {
    ++num_done_;
    num_right_ += is_right;
    const bool is_last = num_done_ == total_;
    if (!is_shown_ || !(is_terminal_ || is_last)) return;
    // Ten lines a second are enough for a reader.
    if (!is_last && seconds_since(shown_at_) < 0.1) return;
    shown_at_ = Clock::now();
    const double elapsed_s = seconds_since(start_);
    const double done = static_cast<double>(num_done_);
    const double accuracy = 100 * static_cast<double>(num_right_) / done;
    std::fprintf(stderr, "%s%s: %zu/%zu, accuracy %.2f %%, ", is_terminal_ ? "\r" : "",
                 label_.c_str(), num_done_, total_, accuracy);
    if (is_last) {
      std::fprintf(stderr, "%.1f s%s\n", elapsed_s, is_terminal_ ? "        " : "");
    } else {
      const double left_s = elapsed_s / done * static_cast<double>(total_ - num_done_);
      std::fprintf(stderr, "%.0f s left   ", left_s);
    }
    std::fflush(stderr);
  }

 private:
  const std::string label_;
  const size_t total_;
  const bool is_shown_;
  const bool is_terminal_ = isatty(STDERR_FILENO) == 1;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point shown_at_;
  size_t num_done_ = 0;
  size_t num_right_ = 0;
};

/// Without white space at both ends, as models/demo/train/evaluate.py compares.
std::string_view stripped(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\r\f\v";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) + 1 - first);
}

EvalAnswer ask(Engine& engine, const Tokenizer& tokenizer, const EvalTask& task,
               const CacheParams& cache) {
  EvalAnswer answer;
  try {
    std::vector<GenerateRequest> canvases(1, task.request);
    canvases[0].cache = cache;
    ResponseStream stream = engine.submit(std::move(canvases));
    while (const auto update = stream.next()) {
      for (const DecidedToken& decided : update->tokens) answer.ids.push_back(decided.token);
      answer.stats = update->stats;
      if (update->finish == FinishReason::kError) answer.error = update->error_message;
    }
    answer.is_right = answer.error.empty() &&
                      stripped(tokenizer.decode(answer.ids, true)) == stripped(task.answer);
  } catch (const std::exception& error) {
    answer.error = error.what();
  }
  return answer;
}

void tell_errors(const EvalRun& run, std::span<const EvalTask> tasks) {
  int num_shown = 0;
  for (size_t i = 0; i < tasks.size() && num_shown < kMaxErrorsShown; ++i) {
    if (run.answers[i].error.empty()) continue;
    ++num_shown;
    std::fprintf(stderr, "bicached: %s: %s failed: %s\n", run.policy.c_str(),
                 tasks[i].where.c_str(), run.answers[i].error.c_str());
  }
}

/// Asks all tasks with a thread for each client; answers in the order of the tasks.
std::vector<EvalAnswer> ask_all(Engine& engine, const Tokenizer& tokenizer,
                                std::span<const EvalTask> tasks, const EvalRunPlan& plan) {
  struct Done {
    size_t index;
    EvalAnswer answer;
  };
  Channel<Done> done(tasks.size());
  std::atomic<size_t> next{0};
  const auto client = [&] {
    for (size_t i = next++; i < tasks.size(); i = next++) {
      done.try_push({i, ask(engine, tokenizer, tasks[i], plan.cache)});
    }
  };
  std::vector<EvalAnswer> answers(tasks.size());
  EvalProgress progress(plan, tasks.size());
  std::vector<std::jthread> clients;
  for (int i = 0; i < plan.concurrency; ++i) clients.emplace_back(client);
  for (size_t n = 0; n < tasks.size(); ++n) {
    std::optional<Done> one = done.pop();
    progress.add(one->answer.is_right);
    answers[one->index] = std::move(one->answer);
  }
  return answers;
}

}  // namespace

EvalRun run_eval_policy(Engine& engine, const Tokenizer& tokenizer, std::span<const EvalTask> tasks,
                        const EvalRunPlan& plan) {
  engine.clear_cache(true);
  EvalRun run;
  run.policy = plan.label;
  const EngineStats& stats = engine.stats();
  run.forwards = -stats.forwards;
  run.row_layers = -stats.row_layers;
  run.probe_row_layers = -stats.probe_row_layers;
  const Clock::time_point start = Clock::now();
  run.answers = ask_all(engine, tokenizer, tasks, plan);
  run.wall_s = seconds_since(start);
  run.forwards += stats.forwards;
  run.row_layers += stats.row_layers;
  run.probe_row_layers += stats.probe_row_layers;
  tell_errors(run, tasks);
  return run;
}

}  // namespace bicached
