#include "bicached/engine.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <new>

#include "base/log.h"
#include "bicached/error.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"

namespace bicached {
namespace {

using Clock = Sequence::Clock;
using Job = std::vector<std::unique_ptr<Sequence>>;

int64_t micros(Clock::duration d) {
  return std::chrono::duration_cast<std::chrono::microseconds>(d).count();
}

/// The most updates a canvas can publish: one a forward, and the last.
size_t max_updates(const GenerateRequest& request) {
  const size_t num_blocks =
      static_cast<size_t>(request.gen_length / request.decode.block_length) + 1;
  return static_cast<size_t>(request.gen_length) + static_cast<size_t>(request.decode.steps) +
         num_blocks * 2 + 2;
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

struct Engine::Impl {
  Impl(std::unique_ptr<Denoiser> denoiser_in, const EngineSettings& settings_in)
      : denoiser(std::move(denoiser_in)),
        info(denoiser->info()),
        settings(settings_in),
        capacity_tokens(denoiser->capacity_tokens()),
        jobs(static_cast<size_t>(settings_in.max_queued)),
        finished(1),
        scheduler(settings_in) {
    stats.slab_tokens_capacity = capacity_tokens;
  }

  // Any thread.
  void check_fits(const GenerateRequest& request, int num_tokens) const;
  void reserve_queue(int num_canvases);

  // Engine thread.
  void loop();
  bool take_new_requests();
  void step();
  void decode(const std::vector<Sequence*>& selected);
  void drop_cancelled_and_expired();
  bool place(Sequence& sequence);
  std::vector<RowResult> run(const Forward& forward);
  void commit_and_publish(const std::vector<Sequence*>& selected,
                          const std::vector<RowResult>& results);
  void publish(Sequence& sequence);
  void fail(std::vector<std::unique_ptr<Sequence>> sequences, ErrorCode code,
            const std::string& why);
  void close(Sequence& sequence);
  void update_gauges();

  const std::unique_ptr<Denoiser> denoiser;
  const ModelInfo info;
  const EngineSettings settings;
  const int64_t capacity_tokens;
  Channel<Job> jobs;
  Channel<bool> finished;  // one item when the thread has ended its work
  std::atomic<bool> draining{false};
  std::atomic<bool> aborted{false};
  std::atomic<int64_t> mean_request_us{1000000};  // of finished requests, for Retry-After
  EngineStats stats;
  Scheduler scheduler;
  std::thread thread;
};

// --- The loop ----------------------------------------------------------------------------------

void Engine::Impl::loop() {
  while (take_new_requests()) step();
  finished.try_push(true);
}

/// Sleeps while there is no work. False: closed, and nothing is left.
bool Engine::Impl::take_new_requests() {
  std::optional<Job> job = scheduler.empty() ? jobs.pop() : jobs.try_pop();
  if (!job && scheduler.empty()) return false;
  for (; job; job = jobs.try_pop()) {
    for (auto& sequence : *job) scheduler.enqueue(std::move(sequence));
  }
  return true;
}

void Engine::Impl::step() {
  drop_cancelled_and_expired();
  scheduler.admit(Clock::now(), [this](Sequence& sequence) { return place(sequence); });
  decode(scheduler.select(Clock::now()));
  update_gauges();
#ifndef NDEBUG
  denoiser->check_integrity();
#endif
}

/// One packed forward of these sequences. When it fails each is tried alone, so that only those pay
/// that are at fault.
void Engine::Impl::decode(const std::vector<Sequence*>& selected) {
  if (selected.empty()) return;
  try {
    Forward forward;
    for (const Sequence* s : selected) s->decoder->append_to(forward, s->slab, s->entry);
    commit_and_publish(selected, run(forward));
  } catch (const std::exception& e) {
    ++stats.failed_steps;
    log_error("a forward of " + std::to_string(selected.size()) + " canvases failed: " + e.what());
    if (selected.size() > 1) {
      for (Sequence* sequence : selected) decode({sequence});
      return;
    }
    const auto* error = dynamic_cast<const Error*>(&e);
    fail(scheduler.take_if([&](const Sequence& s) { return &s == selected[0]; }),
         error ? error->code() : ErrorCode::kInternal, e.what());
  }
}

void Engine::Impl::drop_cancelled_and_expired() {
  if (aborted) {
    fail(scheduler.take_if([](const Sequence&) { return true; }), ErrorCode::kDraining,
         "the server stopped before this request was finished");
    return;
  }
  for (auto& sequence : scheduler.take_if([](const Sequence& s) { return s.is_cancelled(); })) {
    ++stats.cancelled;
    close(*sequence);
  }
  const auto now = Clock::now();
  fail(scheduler.take_if(
           [&](const Sequence& s) { return s.request.deadline && *s.request.deadline <= now; }),
       ErrorCode::kDeadlineExceeded, "the request took longer than request_timeout_ms");
  update_gauges();
}

/// Gives a waiting sequence its slab. False: no memory now.
bool Engine::Impl::place(Sequence& sequence) {
  const std::optional<SlabId> slab = denoiser->open_slab(sequence.num_tokens());
  if (!slab) return false;
  sequence.slab = *slab;
  sequence.admitted = sequence.last_forward = Clock::now();
  sequence.decoder.emplace(sequence.request, info, PrefixReuse{});
  --stats.queued;
  stats.prompt_tokens += sequence.decoder->stats().prompt_tokens;
  return true;
}

std::vector<RowResult> Engine::Impl::run(const Forward& forward) {
  const auto start = Clock::now();
  std::vector<RowResult> results = denoiser->run(forward);
  stats.busy_us += micros(Clock::now() - start);
  ++stats.forwards;
  for (const RowGroup& group : forward.groups) {
    stats.rows += group.num_rows();
    stats.row_layers +=
        static_cast<int64_t>(group.num_rows()) * (info.num_layers - group.enter_layer);
  }
  stats.logit_rows += static_cast<int64_t>(forward.logit_rows.size());
  return results;
}

void Engine::Impl::commit_and_publish(const std::vector<Sequence*>& selected,
                                      const std::vector<RowResult>& results) {
  std::span<const RowResult> rest(results);
  for (Sequence* sequence : selected) {
    CanvasDecoder& decoder = *sequence->decoder;
    const size_t num_rows = static_cast<size_t>(decoder.num_logit_rows());
    const int before = decoder.canvas().num_masked(), refreshes = decoder.stats().num_refreshes;
    decoder.commit(rest.first(num_rows));
    rest = rest.subspan(num_rows);
    stats.tokens_committed += before - decoder.canvas().num_masked();
    stats.refreshes += decoder.stats().num_refreshes - refreshes;
    sequence->last_forward = Clock::now();
    publish(*sequence);
  }
  for (auto& done :
       scheduler.take_if([](const Sequence& s) { return s.decoder && s.decoder->finished(); })) {
    stats.completion_tokens += done->decoder->stats().completion_tokens;
    const int64_t took = micros(Clock::now() - done->submitted);
    mean_request_us = (mean_request_us * 7 + took) / 8;
    close(*done);
  }
}

void Engine::Impl::publish(Sequence& sequence) {
  CanvasDecoder& decoder = *sequence.decoder;
  GenerationUpdate update;
  update.tokens = decoder.take_final_tokens();
  update.finish = decoder.finish_reason();
  const Canvas& canvas = decoder.canvas();
  if (sequence.request.wants_canvas) {
    for (int i = canvas.generation_begin(); i < canvas.generation_end(); ++i) {
      update.canvas.push_back(canvas.is_masked(i) ? -1 : canvas.token(i));
    }
  } else if (update.tokens.empty() && !decoder.finished()) {
    return;
  }
  if (sequence.first_token_us == 0 && !update.tokens.empty()) {
    sequence.first_token_us = micros(Clock::now() - sequence.submitted);
  }
  update.index = sequence.index;
  update.stats = decoder.stats();
  update.stats.queued_us = micros(sequence.admitted - sequence.submitted);
  update.stats.first_token_us = sequence.first_token_us;
  sequence.stream->updates.try_push(std::move(update));
}

void Engine::Impl::fail(std::vector<std::unique_ptr<Sequence>> sequences, ErrorCode code,
                        const std::string& why) {
  for (auto& sequence : sequences) {
    GenerationUpdate update;
    update.index = sequence->index;
    if (sequence->decoder) update.stats = sequence->decoder->stats();
    update.finish = FinishReason::kError;
    update.error_code = static_cast<int>(code);
    update.error_message = why;
    sequence->stream->updates.try_push(std::move(update));
    close(*sequence);
  }
}

/// Gives back what a sequence holds; the last of a job ends its stream.
void Engine::Impl::close(Sequence& sequence) {
  if (sequence.slab != kNoId) {
    denoiser->close_slab(sequence.slab);
  } else {
    --stats.queued;
  }
  if (--sequence.stream->num_open == 0) sequence.stream->updates.close();
}

void Engine::Impl::update_gauges() {
  stats.running = scheduler.num_running();
  stats.slab_tokens_used = capacity_tokens - denoiser->free_tokens();
}

// --- Any thread --------------------------------------------------------------------------------

void Engine::Impl::check_fits(const GenerateRequest& request, int num_tokens) const {
  const int64_t longest = std::min<int64_t>(info.max_length, capacity_tokens);
  if (num_tokens <= longest) return;
  throw Error(ErrorCode::kContextLengthExceeded,
              "prompt and generation take " + std::to_string(num_tokens) + " tokens (" +
                  std::to_string(num_tokens - request.gen_length) + " + " +
                  std::to_string(request.gen_length) + "); the longest canvas is " +
                  std::to_string(longest),
              "max_tokens");
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
               const CacheSettings&)
    : impl_(std::make_unique<Impl>(std::move(denoiser), settings)) {}

Engine::~Engine() { stop(std::chrono::milliseconds(0)); }

void Engine::start() {
  impl_->thread = std::thread([impl = impl_.get()] { impl->loop(); });
}

ResponseStream Engine::submit(std::vector<GenerateRequest> canvases) {
  if (impl_->draining) throw Error(ErrorCode::kDraining, "the server is shutting down");
  size_t capacity = 0;
  for (const GenerateRequest& request : canvases) capacity += max_updates(request);
  auto shared = std::make_shared<ResponseStream::Shared>(canvases.size(), capacity);

  Job job;
  for (GenerateRequest& request : canvases) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request = std::move(request);
    sequence->index = static_cast<int>(job.size());
    sequence->stream = shared;
    sequence->submitted = Clock::now();
    impl_->check_fits(sequence->request, sequence->num_tokens());
    make_unmasker(sequence->request.decode);  // throws here rather than on the engine's thread
    job.push_back(std::move(sequence));
  }
  const int num_canvases = static_cast<int>(job.size());
  impl_->reserve_queue(num_canvases);
  if (!impl_->jobs.try_push(std::move(job))) {  // closed between the check above and here
    impl_->stats.queued -= num_canvases;
    throw Error(ErrorCode::kDraining, "the server is shutting down");
  }
  return ResponseStream(std::move(shared));
}

void Engine::begin_drain() { impl_->draining = true; }

bool Engine::is_draining() const { return impl_->draining; }

void Engine::stop(std::chrono::milliseconds drain_timeout) {
  begin_drain();
  impl_->jobs.close();
  if (!impl_->thread.joinable()) return;
  if (!impl_->finished.pop_until(Clock::now() + drain_timeout)) impl_->aborted = true;
  impl_->thread.join();
}

const EngineStats& Engine::stats() const { return impl_->stats; }

const ModelInfo& Engine::model() const { return impl_->info; }

int Engine::retry_after_s() const {
  const double waves = static_cast<double>(impl_->stats.queued + 1) / impl_->settings.max_running;
  const double seconds = std::ceil(waves * static_cast<double>(impl_->mean_request_us) / 1e6);
  return static_cast<int>(std::clamp(seconds, 1.0, 60.0));
}

}  // namespace bicached
