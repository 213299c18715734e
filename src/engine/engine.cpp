#include "bicached/engine.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <new>

#include "base/free_memory.h"
#include "base/log.h"
#include "bicached/error.h"
#include "engine/prefix_cache.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/watched_denoiser.h"

namespace bicached {
namespace {

using Clock = Sequence::Clock;

/// What comes to the engine's thread: canvases, or a question about its state.
struct Job {
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::function<void()> command;
};

/// An update on its way to a client.
struct Outgoing {
  std::shared_ptr<ResponseStream::Shared> stream;
  GenerationUpdate update;
};

/// Places in the channel beyond the queue's: for commands.
constexpr size_t kCommandPlaces = 16;
/// Requests that wait while nothing runs: for what a device in doubt has not taken back.
constexpr std::chrono::milliseconds kStuckPause{10};
/// After some work, freed memory goes back to the system once in so long.
constexpr std::chrono::seconds kTrimInterval{10};
/// Probe outcomes are written at least this often while there are new ones.
constexpr std::chrono::seconds kSaveInterval{60};

int64_t micros(Clock::duration d) {
  return std::chrono::duration_cast<std::chrono::microseconds>(d).count();
}

/// The most updates a canvas can publish: one a forward, and the last.
size_t max_updates(const GenerateRequest& request, int max_revisions) {
  const size_t length = static_cast<size_t>(request.longest_generation());
  const size_t canvases = length / static_cast<size_t>(request.gen_length) + 1;  // as it grows
  const size_t num_blocks =
      length / static_cast<size_t>(request.decode.block_length) + canvases + 1;
  return length + static_cast<size_t>(request.decode.steps) * canvases +
         num_blocks * (static_cast<size_t>(max_revisions) + 2) + 2;
}

void check_held(const char* what, int64_t num_there, int64_t num_held) {
  if (num_there == num_held) return;
  throw Error(ErrorCode::kInternal, "there are " + std::to_string(num_there) + " " + what + ", " +
                                        std::to_string(num_held) + " are held");
}

ErrorCode code_of(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error)) return ErrorCode::kOutOfMemory;
  const auto* ours = dynamic_cast<const Error*>(&error);
  return ours ? ours->code() : ErrorCode::kInternal;
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
  Impl(std::unique_ptr<Denoiser> denoiser_in, const EngineSettings& settings_in,
       const CacheSettings& cache_settings)
      : device(std::move(denoiser_in), std::chrono::milliseconds(settings_in.device_check_ms)),
        info(device.info()),
        settings(settings_in),
        capacity_tokens(device.capacity_tokens()),
        jobs(static_cast<size_t>(settings_in.max_queued) + kCommandPlaces),
        finished(1),
        cache(device, cache_settings),
        scheduler(settings_in) {
    stats.slab_tokens_capacity = capacity_tokens;
    update_gauges();
  }

  /// A request's canvas in a forward, with its probe.
  class CanvasPart final : public ForwardPart {
   public:
    CanvasPart(Impl& engine, Sequence& sequence) : engine_(engine), sequence_(sequence) {}
    int num_rows() const override { return sequence_.num_rows(); }
    int num_logit_rows() const override {
      const Shadow* shadow = sequence_.cache.shadow.get();
      return sequence_.decoder->num_logit_rows() + (shadow ? shadow->num_logit_rows() : 0);
    }
    void append_to(Forward& forward) const override {
      sequence_.decoder->append_to(forward, {sequence_.slab.id(), sequence_.guide_slab.id()},
                                   sequence_.cache.states());
      if (sequence_.cache.shadow) sequence_.cache.shadow->append_to(forward);
    }
    void commit(std::span<const RowResult> results) override {
      engine_.take_results(sequence_, results);
    }
    bool shed() override { return engine_.cache.drop_probe(sequence_.cache); }
    void fail(ErrorCode code, const std::string& why) override {
      engine_.fail(sequence_, code, why);
    }

   private:
    Impl& engine_;
    Sequence& sequence_;
  };

  // Any thread.
  template <class Result>
  Result ask(std::function<Result()> question);
  void fill_blocks(GenerateRequest& request) const;
  int64_t longest_canvas(const GenerateRequest& request) const;
  void check_fits(const GenerateRequest& request, int num_tokens) const;
  void reserve_queue(int num_canvases);

  // Engine thread.
  void loop();
  void begin();
  void end_step(const std::exception& error);
  bool take_new_requests();
  void arrive(std::unique_ptr<Sequence> arriving);
  void step();
  bool gives_up();
  void check_integrity();
  std::vector<ForwardPart*> select();
  void decode(const std::vector<ForwardPart*>& parts);
  void run(const std::vector<ForwardPart*>& parts);
  void drop_cancelled_and_expired();
  Placement place(Sequence& sequence);
  Placement try_place(Sequence& sequence);
  Lease open_slab(int num_tokens);
  void count(const Forward& forward, Clock::duration took);
  void take_results(Sequence& sequence, std::span<const RowResult> results);
  void publish(Sequence& sequence);
  void deliver();
  void fail(std::vector<std::unique_ptr<Sequence>> sequences, ErrorCode code,
            const std::string& why);
  void fail(const Sequence& sequence, ErrorCode code, const std::string& why);
  void fail_all(ErrorCode code, const std::string& why);
  void give_up(const std::string& why);
  void refuse_when_draining() const;
  void close(Sequence& sequence);
  void update_gauges();

  WatchedDenoiser device;
  const ModelInfo info;
  const EngineSettings settings;
  const int64_t capacity_tokens;
  Channel<Job> jobs;
  Channel<bool> finished;  // one item when the thread has ended its work
  std::atomic<bool> draining{false};
  std::atomic<bool> aborted{false};
  std::atomic<bool> failed{false};   // the device; also draining then
  std::atomic<bool> is_ready{true};  // the device, as far as it was checked
  std::function<void()> on_failure;
  std::atomic<int64_t> mean_request_us{1000000};  // of finished requests, for Retry-After
  EngineStats stats;
  PrefixCache cache;
  Scheduler scheduler;                   // its sequences hold slabs and entries: it goes first
  std::vector<CanvasPart> canvas_parts;  // of the forward that runs
  std::vector<Outgoing> outbox;          // of the forward before
  bool has_run = false;                  // the last step had a forward
  bool is_trimmed = true;                // nothing was done since freed memory went back
  Clock::time_point trimmed = Clock::now();
  Clock::time_point saved_state = Clock::now();
  std::thread thread;
};

// --- The loop ----------------------------------------------------------------------------------

void Engine::Impl::loop() {
  begin();
  for (bool goes_on = true; goes_on;) {
    try {
      goes_on = take_new_requests();
      if (goes_on) step();
    } catch (const std::exception& e) {
      end_step(e);
    }
  }
  cache.close_state();
  finished.try_push(true);
}

void Engine::Impl::begin() {
  try {
    device.begin_on_thread();
  } catch (const std::exception& e) {
    give_up(std::string("the engine's thread can't begin: ") + e.what());
  }
}

/// What no guard further down has caught: memory ran out, or a defect of ours.
void Engine::Impl::end_step(const std::exception& error) {
  try {
    log_error(std::string("a step failed: ") + error.what());
    fail_all(code_of(error), error.what());
  } catch (const std::exception&) {
    // Not even that. Streams have ended with their sequences.
  }
}

/// Sleeps while there is no work, until it is time to save or to look after the device. False:
/// closed, and no request is left.
bool Engine::Impl::take_new_requests() {
  const bool has_work = !scheduler.empty() || (cache.is_making() && !draining);
  const auto now = Clock::now();
  auto wake = Clock::time_point::max();
  if (cache.has_unsaved() && !failed) wake = saved_state + kSaveInterval;
  if (!is_trimmed) wake = std::min(wake, trimmed + kTrimInterval);
  if (device.is_in_doubt() && !failed) wake = std::min(wake, device.next_check());
  if (has_work) wake = has_run ? now : std::min(wake, now + kStuckPause);
  std::optional<Job> job = wake <= now                       ? jobs.try_pop()
                           : wake < Clock::time_point::max() ? jobs.pop_until(wake)
                                                             : jobs.pop();
  if (!job && scheduler.empty() && jobs.is_done()) return false;
  if (job) is_trimmed = false;
  for (; job; job = jobs.try_pop()) {
    if (job->command) job->command();
    for (auto& sequence : job->sequences) arrive(std::move(sequence));
  }
  return true;
}

void Engine::Impl::arrive(std::unique_ptr<Sequence> arriving) {
  Sequence& sequence = *arriving;
  scheduler.enqueue(std::move(arriving));
  try {
    cache.arrive(sequence.request, sequence.cache);
  } catch (const std::exception& e) {
    log_error(std::string("a request could not be taken in: ") + e.what());
    fail(sequence, code_of(e), e.what());
  }
}

void Engine::Impl::step() {
  device.look_after(Clock::now());
  if (!is_trimmed && Clock::now() - trimmed >= kTrimInterval) {
    give_free_memory_back();
    trimmed = Clock::now();
    is_trimmed = scheduler.empty();
  }
  drop_cancelled_and_expired();
  has_run = false;
  if (gives_up()) return;
  scheduler.admit(
      Clock::now(), [this](const Sequence& s) { return cache.is_hot(s.request, s.cache); },
      [this](Sequence& sequence) { return place(sequence); });
  const std::vector<ForwardPart*> parts = select();
  has_run = !parts.empty();
  decode(parts);
  if (Clock::now() - saved_state > kSaveInterval) {
    cache.save_state();
    saved_state = Clock::now();
  }
  update_gauges();
  if (!gives_up()) check_integrity();
}

/// Whether nothing that needs the device can be done any more.
bool Engine::Impl::gives_up() {
  if (device.is_lost() && !failed) {
    give_up("the device can't be used any more: " + device.last_error());
  }
  update_gauges();
  return failed;
}

void Engine::Impl::check_integrity() {
  if (!settings.integrity_checks) return;
  try {
    device.check_integrity();
    cache.check_integrity();
    check_held("slabs", device.num_slabs(), scheduler.num_slabs() + cache.num_slabs());
    check_held("entries", device.num_entries(), scheduler.num_entries() + cache.num_entries());
  } catch (const std::exception& e) {
    give_up(std::string("the accounts are wrong: ") + e.what());
  }
}

/// What takes part in the next forward: entries that are made, then the requests.
std::vector<ForwardPart*> Engine::Impl::select() {
  int room = settings.max_rows_per_forward;
  std::vector<ForwardPart*> parts = cache.making(room);
  for (const ForwardPart* part : parts) room -= part->num_rows();
  canvas_parts.clear();
  const bool blocks_alone = info.blocks_go_alone && parts.empty();
  for (Sequence* sequence : scheduler.select(Clock::now(), room, blocks_alone)) {
    canvas_parts.emplace_back(*this, *sequence);
  }
  for (CanvasPart& part : canvas_parts) parts.push_back(&part);
  return parts;
}

/// One packed forward of these parts. When it fails it is tried once more without unused entries if
/// memory ran out, else each part alone, so that only those pay that are at fault.
void Engine::Impl::decode(const std::vector<ForwardPart*>& parts) {
  if (parts.empty() || device.is_lost()) return;
  try {
    run(parts);
  } catch (const std::exception& e) {
    ++stats.failed_steps;
    log_error("a forward of " + std::to_string(parts.size()) + " parts failed: " + e.what());
    if (device.is_lost()) return;
    if (code_of(e) == ErrorCode::kOutOfMemory && cache.drop_unused() > 0) {
      decode(parts);
    } else if (parts.size() > 1) {
      for (ForwardPart* part : parts) decode({part});
    } else if (parts[0]->shed()) {
      decode(parts);
    } else {
      parts[0]->fail(code_of(e), e.what());
    }
  }
}

void Engine::Impl::run(const std::vector<ForwardPart*>& parts) {
  Forward forward;
  std::vector<size_t> num_rows;  // the parts move on when they commit
  for (ForwardPart* part : parts) {
    part->append_to(forward);
    num_rows.push_back(static_cast<size_t>(part->num_logit_rows()));
  }
  const auto start = Clock::now();
  // Waking those who wait for updates takes a while: the device has its next work first.
  const std::vector<RowResult> results = device.run(forward, [this] { deliver(); });
  count(forward, Clock::now() - start);
  std::span<const RowResult> rest(results);
  for (size_t i = 0; i < parts.size(); ++i) {
    // Those that took their results must not run again: one that can't ends here.
    try {
      parts[i]->commit(rest.first(num_rows[i]));
    } catch (const std::exception& e) {
      if (code_of(e) != ErrorCode::kInvalidRequest) {
        log_error(std::string("results of a forward could not be taken: ") + e.what());
      }
      parts[i]->fail(code_of(e), e.what());
    }
    rest = rest.subspan(num_rows[i]);
  }
  for (auto& done :
       scheduler.take_if([](const Sequence& s) { return s.decoder && s.decoder->finished(); })) {
    stats.completion_tokens += done->decoder->stats().completion_tokens;
    const int64_t took = micros(Clock::now() - done->submitted);
    mean_request_us = (mean_request_us * 7 + took) / 8;
    close(*done);
  }
}

void Engine::Impl::drop_cancelled_and_expired() {
  if (failed) fail_all(ErrorCode::kDeviceFailed, "the device failed; the server ends");
  if (aborted) {
    fail_all(ErrorCode::kDraining, "the server stopped before this request was finished");
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

/// Gives a waiting sequence its slab, and what it reuses. One that can't have them ends.
Placement Engine::Impl::place(Sequence& sequence) {
  try {
    return try_place(sequence);
  } catch (const std::exception& e) {
    log_error(std::string("a request could not be begun: ") + e.what());
    fail(sequence, code_of(e), e.what());
    return Placement::kEnded;
  }
}

Placement Engine::Impl::try_place(Sequence& sequence) {
  if (cache.prepare(sequence.request, sequence.cache) == Readiness::kWaitsForEntry) {
    return Placement::kWaitsForEntry;
  }
  Lease slab = open_slab(sequence.num_tokens());
  if (!slab) return Placement::kNoRoom;
  if (is_guided(sequence.request)) {
    sequence.guide_slab = open_slab(sequence.num_tokens());
    if (!sequence.guide_slab) return Placement::kNoRoom;
  }
  sequence.slab = std::move(slab);
  --stats.queued;
  cache.take_up(sequence.request, sequence.cache, sequence.slab.id());
  sequence.admitted = sequence.last_forward = Clock::now();
  sequence.decoder.emplace(sequence.request, info, sequence.cache.reuse);
  stats.prompt_tokens += sequence.decoder->stats().prompt_tokens;
  return Placement::kPlaced;
}

/// Requests go before probes.
Lease Engine::Impl::open_slab(int num_tokens) {
  Lease slab = lease_slab(device, num_tokens);
  const auto drop_probe = [this](Sequence& s) { return cache.drop_probe(s.cache); };
  while (!slab && scheduler.any_running(drop_probe)) {
    slab = lease_slab(device, num_tokens);
  }
  return slab;
}

void Engine::Impl::count(const Forward& forward, Clock::duration took) {
  stats.busy_us += micros(took);
  ++stats.forwards;
  for (const RowGroup& group : forward.groups) stats.rows += group.num_rows();
  stats.row_layers += row_layers(forward.groups, info.num_layers);
  stats.logit_rows += static_cast<int64_t>(forward.logit_rows.size());
}

void Engine::Impl::take_results(Sequence& sequence, std::span<const RowResult> results) {
  CanvasDecoder& decoder = *sequence.decoder;
  const int before = decoder.canvas().num_masked(), refreshes = decoder.stats().num_refreshes;
  const auto num_own = static_cast<size_t>(decoder.num_logit_rows());
  const auto own = results.first(num_own);
  decoder.commit(own);
  if (Shadow* shadow = sequence.cache.shadow.get()) {
    shadow->follow(results.subspan(num_own), own, decoder.last_commits());
  }
  stats.tokens_committed += before - decoder.canvas().num_masked();
  stats.refreshes += decoder.stats().num_refreshes - refreshes;
  sequence.last_forward = Clock::now();
  publish(sequence);
}

void Engine::Impl::publish(Sequence& sequence) {
  CanvasDecoder& decoder = *sequence.decoder;
  GenerationUpdate update;
  update.tokens = decoder.take_final_tokens();
  update.finish = decoder.finish_reason();
  const Canvas& canvas = decoder.canvas();
  if (sequence.request.wants_canvas) {
    const int end = canvas.generation_begin() + sequence.request.text_limit();
    for (int i = canvas.generation_begin(); i < end; ++i) {
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
  const bool hit = sequence.cache.reuse.depth > 0;
  update.stats.cache = !sequence.cache.policy->reuses ? "off" : hit ? "hit" : "miss";
  update.stats.cached_tokens = hit ? sequence.cache.reuse.prefix_len : 0;
  update.stats.queued_us = micros(sequence.admitted - sequence.submitted);
  update.stats.first_token_us = sequence.first_token_us;
  outbox.push_back({sequence.stream, std::move(update)});
}

void Engine::Impl::deliver() {
  for (Outgoing& outgoing : outbox) outgoing.stream->updates.try_push(std::move(outgoing.update));
  outbox.clear();
}

void Engine::Impl::fail(std::vector<std::unique_ptr<Sequence>> sequences, ErrorCode code,
                        const std::string& why) {
  deliver();
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

/// One that is in the scheduler; it is gone afterwards.
void Engine::Impl::fail(const Sequence& sequence, ErrorCode code, const std::string& why) {
  fail(scheduler.take_if([&](const Sequence& s) { return &s == &sequence; }), code, why);
}

void Engine::Impl::fail_all(ErrorCode code, const std::string& why) {
  fail(scheduler.take_if([](const Sequence&) { return true; }), code, why);
}

/// Nothing that needs the device is done any more.
void Engine::Impl::give_up(const std::string& why) {
  failed = draining = true;
  log_error("the server ends: " + why);
  fail_all(ErrorCode::kDeviceFailed, why);
  if (on_failure) on_failure();
}

void Engine::Impl::refuse_when_draining() const {
  if (failed) throw Error(ErrorCode::kDeviceFailed, "the device failed; the server ends");
  if (draining) throw Error(ErrorCode::kDraining, "the server is shutting down");
}

/// Accounts for a sequence that goes, with what it holds. Throws nothing: others go with it.
void Engine::Impl::close(Sequence& sequence) {
  try {
    deliver();
    const auto& decoder = sequence.decoder;
    cache.finish(sequence.cache, decoder ? decoder->stats() : GenerationStats{},
                 decoder && decoder->finished());
  } catch (const std::exception& e) {
    log_error(std::string("what a request leaves could not be kept: ") + e.what());
  }
  if (!sequence.slab) --stats.queued;
  sequence.release();
  sequence.leave();
}

void Engine::Impl::update_gauges() {
  stats.running = scheduler.num_running();
  stats.slab_tokens_used = capacity_tokens - device.free_tokens();
  is_ready = device.is_ready();
}

// --- Any thread --------------------------------------------------------------------------------

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
    Answer given;
    try {
      given.result = question();
    } catch (...) {
      given.error = std::current_exception();
    }
    answer->try_push(std::move(given));
  };
  if (!jobs.try_push(std::move(job))) {
    refuse_when_draining();
    throw Error(ErrorCode::kQueueFull, "too many questions at once; try again");
  }
  Answer given = *answer->pop();
  if (given.error) std::rethrow_exception(given.error);
  return std::move(*given.result);
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

  Job job;
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
  if (!impl_->jobs.try_push(std::move(job))) {
    impl_->stats.queued -= num_canvases;
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
  if (!impl_->finished.pop_until(Clock::now() + drain_timeout)) impl_->aborted = true;
  impl_->thread.join();
}

void Engine::pin_prefix(std::vector<TokenId> ids) {
  if (static_cast<int64_t>(ids.size()) > impl_->capacity_tokens || ids.empty()) {
    throw Error(ErrorCode::kInvalidSettings,
                "pinned_prefixes: one has " + std::to_string(ids.size()) +
                    " tokens; allowed is 1 to " + std::to_string(impl_->capacity_tokens),
                "pinned_prefixes");
  }
  impl_->ask<bool>([this, ids = std::move(ids)] {
    impl_->cache.pin(ids);
    return true;
  });
}

CacheReport Engine::cache_report() {
  return impl_->ask<CacheReport>([this] { return impl_->cache.report(); });
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
