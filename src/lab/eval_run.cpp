#include "lab/eval_run.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "base/text_list.h"
#include "bicached/channel.h"
#include "lab/progress.h"

namespace bicached {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxErrorsShown = 5;

std::string accuracy_note(size_t num_right, size_t num_done) {
  char text[32];
  const double share = static_cast<double>(num_right) / static_cast<double>(num_done);
  std::snprintf(text, sizeof text, "accuracy %.2f %%", 100 * share);
  return text;
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
    // As models/demo/train/evaluate.py compares.
    answer.is_right =
        answer.error.empty() && trimmed(tokenizer.decode(answer.ids, true)) == trimmed(task.answer);
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
  std::optional<Progress> progress;
  if (plan.shows_progress) {
    progress.emplace(plan.label, static_cast<int64_t>(tasks.size()), "questions");
  }
  size_t num_right = 0;
  std::vector<std::jthread> clients;
  for (int i = 0; i < plan.concurrency; ++i) clients.emplace_back(client);
  for (size_t n = 1; n <= tasks.size(); ++n) {
    std::optional<Done> one = done.pop();
    num_right += one->answer.is_right;
    if (progress) progress->show(static_cast<int64_t>(n), accuracy_note(num_right, n));
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
  run.probe_row_layers = -engine.cache_stats().probe_row_layers;
  const Clock::time_point start = Clock::now();
  run.answers = ask_all(engine, tokenizer, tasks, plan);
  run.wall_s = std::chrono::duration<double>(Clock::now() - start).count();
  run.forwards += stats.forwards;
  run.row_layers += stats.row_layers;
  run.probe_row_layers += engine.cache_stats().probe_row_layers;
  tell_errors(run, tasks);
  return run;
}

}  // namespace bicached
