#pragma once

#include <chrono>
#include <string>

#include "bicached/engine.h"
#include "bicached/tokenizer.h"
#include "http/exchange.h"
#include "http/job.h"
#include "http/metrics.h"

namespace bicached {

/// What running a job needs besides the job. All outlive it.
struct GenerateContext {
  Engine& engine;
  const Tokenizer& tokenizer;
  Metrics& metrics;
  std::chrono::milliseconds request_timeout;
  std::chrono::milliseconds ping_interval;
  int max_canvases;  // that the engine takes at once
};

/// Submits the job and answers it: plain (waits here) or as a stream. Throws what the engine
/// throws at submit, and, for plain answers, what befell a canvas. A client that left cancels it.
HttpReply run_job(Job job, const HttpRequest& request, const GenerateContext& context);

}  // namespace bicached
