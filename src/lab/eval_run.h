#pragma once

#include <span>
#include <string>
#include <vector>

#include "bicached/engine.h"
#include "bicached/tokenizer.h"
#include "lab/eval_report.h"

namespace bicached {

/// A question as the engine takes it, without the policy.
struct EvalTask {
  GenerateRequest request;
  std::string answer;
  std::string where;  // "FILE:12", for messages
};

/// What one run asks.
struct EvalRunPlan {
  std::string label;  // of the policy
  CacheParams cache;
  int concurrency = 1;
  bool shows_progress = true;
};

/// Sends all tasks in order, `concurrency` at a time: the next goes out when one ends. The prefix
/// cache starts empty and knows nothing. Failed requests are told on standard error.
EvalRun run_eval_policy(Engine& engine, const Tokenizer& tokenizer, std::span<const EvalTask> tasks,
                        const EvalRunPlan& plan);

}  // namespace bicached
