#include "http/prompt_scores.h"

#include <algorithm>
#include <limits>
#include <thread>

#include "bicached/error.h"
#include "http/client_watch.h"

namespace bicached {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kAtOnce = 16;  // canvases: others have their turn in between

/// A prompt whose token at `position` is masked, to be decided as what it is.
GenerateRequest score_request(const GenerateRequest& of, size_t position) {
  const std::vector<TokenId>& ids = of.prompt_ids;
  const auto at = ids.begin() + static_cast<std::ptrdiff_t>(position);
  GenerateRequest request;
  request.prompt_ids.assign(ids.begin(), at);
  request.suffix_ids.assign(at + 1, ids.end());
  request.gen_length = 1;
  request.wants_end = true;  // a prompt may hold end tokens
  request.sampling.forced = *at;
  request.sampling.num_top_logprobs = of.sampling.num_top_logprobs;
  request.decode.steps = 1;
  request.decode.block_length = of.decode.block_length;
  request.cache.policy = "off";
  request.cache.deterministic = true;
  return request;
}

class Scorer {
 public:
  Scorer(const HttpRequest& request, const GenerateContext& context, bool is_streamed)
      : request_(request),
        context_(context),
        client_(request, is_streamed),
        deadline_(Clock::now() + context.request_timeout) {}

  /// False: the client is gone.
  bool score(const GenerateRequest& prompt, std::vector<DecidedToken>& scores) {
    const auto without = static_cast<size_t>(context_.engine.model().logits_shift);
    const size_t num_at_once = std::min(kAtOnce, static_cast<size_t>(context_.max_canvases));
    scores.resize(prompt.prompt_ids.size());
    for (size_t i = 0; i < std::min(without, scores.size()); ++i) {
      scores[i].token = prompt.prompt_ids[i];
      scores[i].logprob = std::numeric_limits<float>::quiet_NaN();
    }
    for (size_t begin = without; begin < scores.size(); begin += num_at_once) {
      const size_t end = std::min(begin + num_at_once, scores.size());
      if (!score(prompt, begin, std::span(scores).subspan(begin, end - begin))) return false;
    }
    return true;
  }

 private:
  bool score(const GenerateRequest& prompt, size_t begin, std::span<DecidedToken> scores) {
    std::vector<GenerateRequest> canvases;
    for (size_t i = 0; i < scores.size(); ++i) {
      GenerateRequest& canvas = canvases.emplace_back(score_request(prompt, begin + i));
      canvas.id = request_.id + "@" + std::to_string(begin + i);
      canvas.deadline = deadline_;
    }
    std::optional<ResponseStream> stream;
    while (!submit(canvases, stream)) {
      if (client_.look() == ClientState::kGone) return false;
    }
    num_submitted_ += scores.size();
    while (!stream->is_done()) {
      if (const auto update = stream->next_until(client_.next_look())) {
        if (update->finish == FinishReason::kError) {
          throw Error(static_cast<ErrorCode>(update->error_code), update->error_message);
        }
        if (!update->tokens.empty()) {
          DecidedToken& score = scores[static_cast<size_t>(update->index)];
          score = update->tokens.front();
          score.is_end = false;  // it ended the canvas, not the prompt
        }
      }
      if (client_.look() == ClientState::kGone) return false;
    }
    return true;
  }

  /// A full queue refuses the first canvases; those that follow wait for it.
  bool submit(const std::vector<GenerateRequest>& canvases, std::optional<ResponseStream>& stream) {
    try {
      stream.emplace(context_.engine.submit(canvases));
      return true;
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kQueueFull || num_submitted_ == 0) throw;
      if (Clock::now() >= deadline_) throw;
    }
    std::this_thread::sleep_until(client_.next_look());
    return false;
  }

  const HttpRequest& request_;
  const GenerateContext& context_;
  ClientWatch client_;
  const Clock::time_point deadline_;
  size_t num_submitted_ = 0;
};

}  // namespace

bool score_prompts(Job& job, const HttpRequest& request, const GenerateContext& context) {
  if (!job.echo || job.num_logprobs < 0) return true;
  Scorer scorer(request, context, job.stream);
  const auto num_choices = static_cast<size_t>(job.choices_per_prompt);
  job.prompt_scores.resize(job.canvases.size() / num_choices);
  for (size_t i = 0; i < job.prompt_scores.size(); ++i) {
    if (!scorer.score(job.canvases[i * num_choices], job.prompt_scores[i])) return false;
  }
  return true;
}

}  // namespace bicached
