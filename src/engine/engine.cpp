// What any thread may call; the loop is in engine_loop.cpp.
#include "bicached/engine.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>

#include "base/log.h"
#include "bicached/error.h"
#include "engine/engine_impl.h"

namespace bicached {
namespace {

using Clock = Sequence::Clock;

/// The most updates a canvas can publish: one a forward, and the last.
size_t max_updates(const GenerateRequest& request, int max_revisions) {
  const size_t length = static_cast<size_t>(request.longest_generation());
  const size_t canvases = length / static_cast<size_t>(request.gen_length) + 1;  // as it grows
  const size_t num_blocks =
      length / static_cast<size_t>(request.decode.block_length) + canvases + 1;
  return length + static_cast<size_t>(request.decode.steps) * canvases +
         num_blocks * (static_cast<size_t>(max_revisions) + 2) + 2;
}

}  // namespace

ResponseStream::ResponseStream(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

ResponseStream::~ResponseStream() {
  if (!shared_) return;
  for (std::atomic<bool>& cancelled : shared_->cancelled) cancelled = true;
}

std::optional<GenerationUpdate> ResponseStream::next() { return shared_->updates.pop(); }

std::optional<GenerationUpdate> ResponseStream::next_until(Clock::time_point deadline) {
  return shared_->updates.pop_until(deadline);
}

bool ResponseStream::is_done() const { return shared_->updates.is_done(); }

void ResponseStream::cancel(int index) { shared_->cancelled[static_cast<size_t>(index)] = true; }

/// The canvas of a model that attends by blocks is whole ones; its text is no longer than asked
/// for.
void Engine::Impl::fill_blocks(GenerateRequest& request) const {
  const int block = info.attention_block;
  if (block == 0) return;
  if (!request.suffix_ids.empty() || !request.given.empty()) {
    throw Error(ErrorCode::kInvalidRequest,
                "suffix: this model attends block by block and can't see text behind what it "
                "writes; send the request without one, and without masks in the prompt",
                "suffix");
  }
  if (request.decode.block_length != block) {
    throw Error(ErrorCode::kInvalidRequest,
                "block_length is " + std::to_string(request.decode.block_length) +
                    "; this model attends by blocks of " + std::to_string(block) +
                    ", which is the only value it takes",
                "block_length");
  }
  request.max_text = request.text_limit();
  const int prompt = static_cast<int>(request.prompt_ids.size()), wanted = request.gen_length;
  const auto filled = [&](int length) {
    return (prompt + length + block - 1) / block * block - prompt;
  };
  request.gen_length = filled(wanted);
  if (request.grows_to > wanted) request.grows_to = filled(request.grows_to);
  // A step decides as many positions as it would have.
  const int64_t steps = int64_t{request.decode.steps} * request.gen_length;
  request.decode.steps = static_cast<int>((steps + wanted - 1) / wanted);
}

int64_t Engine::Impl::longest_canvas(const GenerateRequest& request) const {
  const int64_t room = is_guided(request) ? capacity_tokens / 2 : capacity_tokens;
  const int64_t longest = std::min<int64_t>(info.max_length, room);
  return info.attention_block > 0 ? longest - longest % info.attention_block : longest;
}

void Engine::Impl::check_fits(const GenerateRequest& request, int num_tokens) const {
  const int64_t longest = longest_canvas(request);
  if (num_tokens <= longest) return;
  const int num_generated = request.longest_generation();
  throw Error(ErrorCode::kContextLengthExceeded,
              "prompt and generation take " + std::to_string(num_tokens) + " tokens (" +
                  std::to_string(num_tokens - num_generated) + " + " +
                  std::to_string(num_generated) + "); the longest canvas is " +
                  std::to_string(longest),
              "max_tokens");
}

/// Runs a question on the engine's thread, after the forward that runs.
template <class Result>
Result Engine::Impl::ask(std::function<Result()> question) {
  if (failed) refuse_when_draining();
  struct Answer {
    std::optional<Result> result;
    std::exception_ptr error;
  };
  auto answer = std::make_shared<Channel<Answer>>(1);
  Job job;
  job.command = [answer, question = std::move(question)] {
    contain("a question to the engine was not answered", [&] {
      Answer given;
      try {
        given.result = question();
      } catch (...) {
        given.error = std::current_exception();
      }
      answer->try_push(std::move(given));
    });
    answer->close();  // who asked waits no longer, whatever came of it
  };
  if (!jobs.try_push(std::move(job))) {
    refuse_when_draining();
    throw Error(ErrorCode::kQueueFull, "too many questions at once; try again");
  }
  std::optional<Answer> given = answer->pop();
  if (!given) throw Error(ErrorCode::kOutOfMemory, "the engine could not answer");
  if (given->error) std::rethrow_exception(given->error);
  return std::move(*given->result);
}

void check_prefix(const GenerateRequest& request) {
  const auto prompt_len = static_cast<int>(request.prompt_ids.size());
  if (request.cache.prefix_len.value_or(0) <= prompt_len) return;
  throw Error(ErrorCode::kInvalidRequest,
              "cache.prefix_len is " + std::to_string(*request.cache.prefix_len) +
                  "; the prompt has " + std::to_string(prompt_len) + " tokens",
              "cache.prefix_len");
}

void Engine::Impl::reserve_queue(int num_canvases) {
  if (num_canvases > settings.max_queued) {
    throw Error(ErrorCode::kInvalidRequest,
                "n: the request asks for " + std::to_string(num_canvases) +
                    " canvases; this server queues at most " + std::to_string(settings.max_queued),
                "n");
  }
  if (stats.queued.fetch_add(num_canvases) + num_canvases > settings.max_queued) {
    stats.queued -= num_canvases;
    throw Error(ErrorCode::kQueueFull, "the queue is full (" + std::to_string(settings.max_queued) +
                                           " requests wait); try again later");
  }
}

Engine::Engine(std::unique_ptr<Denoiser> denoiser, const EngineSettings& settings,
               const CacheSettings& cache_settings)
    : impl_(std::make_unique<Impl>(std::move(denoiser), settings, cache_settings)) {}

Engine::~Engine() { stop(std::chrono::milliseconds(0)); }

void Engine::start(std::function<void()> on_failure) {
  impl_->on_failure = std::move(on_failure);
  impl_->thread = std::thread([impl = impl_.get()] { impl->loop(); });
}

ResponseStream Engine::submit(std::vector<GenerateRequest> canvases) {
  impl_->refuse_when_draining();
  size_t capacity = 0;
  for (GenerateRequest& request : canvases) {
    // What is wrong with a request is thrown here rather than on the engine's thread.
    impl_->fill_blocks(request);
    capacity += max_updates(request, make_unmasker(request.decode)->max_revisions());
  }
  auto shared = std::make_shared<ResponseStream::Shared>(canvases.size(), capacity);

  Impl::Job job;
  for (GenerateRequest& request : canvases) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request = std::move(request);
    sequence->index = static_cast<int>(job.sequences.size());
    sequence->stream = shared;
    sequence->submitted = Clock::now();
    impl_->check_fits(sequence->request, sequence->num_tokens());
    check_prefix(sequence->request);
    impl_->cache.check(sequence->request);
    job.sequences.push_back(std::move(sequence));
  }
  const int num_canvases = static_cast<int>(job.sequences.size());
  impl_->reserve_queue(num_canvases);
  for (const auto& sequence : job.sequences) sequence->place = QueuePlace(impl_->stats.queued);
  if (!impl_->jobs.try_push(std::move(job))) {
    // Closed between the check above and here, or full of questions to the engine.
    impl_->refuse_when_draining();
    throw Error(ErrorCode::kQueueFull, "the queue is full; try again later");
  }
  return ResponseStream(std::move(shared));
}

void Engine::begin_drain() { impl_->draining = true; }

bool Engine::is_draining() const { return impl_->draining; }

bool Engine::has_failed() const { return impl_->failed; }

bool Engine::is_ready() const { return impl_->is_ready && !impl_->failed; }

void Engine::stop(std::chrono::milliseconds drain_timeout) {
  begin_drain();
  impl_->jobs.close();
  if (!impl_->thread.joinable()) return;
  impl_->finished.pop_until(Clock::now() + drain_timeout);
  if (!impl_->finished.is_done()) impl_->aborted = true;
  impl_->thread.join();
}

std::future<void> Engine::warm_prefix(std::vector<TokenId> ids, bool pinned) {
  if (static_cast<int64_t>(ids.size()) > impl_->capacity_tokens || ids.empty()) {
    throw Error(ErrorCode::kInvalidSettings, "a prefix to store has " + std::to_string(ids.size()) +
                                                 " tokens; allowed is 1 to " +
                                                 std::to_string(impl_->capacity_tokens));
  }
  const auto warmed = std::make_shared<std::promise<void>>();
  std::future<void> future = warmed->get_future();
  const auto tell = [warmed](const Error* failure) {
    if (failure) {
      warmed->set_exception(std::make_exception_ptr(*failure));
    } else {
      warmed->set_value();
    }
  };
  impl_->ask<bool>([this, ids = std::move(ids), pinned, tell] {
    // Asked here: who gives up meanwhile runs no forward any more, and nobody would be told.
    impl_->refuse_when_draining();
    impl_->cache.entries().warm(ids, pinned, tell);
    return true;
  });
  return future;
}

CacheReport Engine::cache_report(int max_entries) {
  return impl_->ask<CacheReport>([this, max_entries] { return impl_->cache.report(max_entries); });
}

int Engine::clear_cache(bool forget_probes) {
  return impl_->ask<int>([this, forget_probes] { return impl_->cache.clear(forget_probes); });
}

const EngineStats& Engine::stats() const { return impl_->stats; }

const CacheStats& Engine::cache_stats() const { return impl_->cache.stats(); }

const ModelInfo& Engine::model() const { return impl_->info; }

int64_t Engine::longest_canvas(const GenerateRequest& request) const {
  return impl_->longest_canvas(request);
}

int Engine::retry_after_s() const {
  const double waves = static_cast<double>(impl_->stats.queued + 1) / impl_->settings.max_running;
  const double seconds = std::ceil(waves * static_cast<double>(impl_->mean_request_us) / 1e6);
  return static_cast<int>(std::clamp(seconds, 1.0, 60.0));
}

}  // namespace bicached
