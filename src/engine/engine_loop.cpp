// The loop of the engine's thread.
#include <algorithm>
#include <exception>
#include <new>

#include "base/free_memory.h"
#include "base/log.h"
#include "bicached/error.h"
#include "engine/engine_impl.h"

namespace bicached {
namespace {

using Clock = Sequence::Clock;

/// Requests that wait while nothing runs: for what a device in doubt has not taken back.
constexpr std::chrono::milliseconds kStuckPause{10};
/// After some work, freed memory goes back to the system once in so long.
constexpr std::chrono::seconds kTrimInterval{10};
/// Probe outcomes are written at least this often while there are new ones.
constexpr std::chrono::seconds kSaveInterval{60};

int64_t micros(Clock::duration d) {
  return std::chrono::duration_cast<std::chrono::microseconds>(d).count();
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

void Engine::Impl::loop() {
  contain("the engine's thread", [this] { begin(); });
  for (bool goes_on = true; goes_on;) {
    try {
      goes_on = take_new_requests();
      if (goes_on) step();
    } catch (const std::exception& e) {
      end_step(e);
    }
  }
  cache.entries().give_up_making(ErrorCode::kDraining, "the server is shutting down");
  contain("the state file", [this] { cache.outcomes_file().close(); });
  finished.close();
}

void Engine::Impl::begin() {
  try {
    device.begin_on_thread();
  } catch (const std::exception& e) {
    give_up(std::string("the engine's thread can't begin: ") + e.what());
  }
}

/// What no guard further down has caught: memory ran out, or a defect of ours. Where not even this
/// can be done, streams end with their sequences.
void Engine::Impl::end_step(const std::exception& error) noexcept {
  log_failure("a step failed", error.what());
  fail_all(code_of(error), error.what());
}

/// Sleeps while there is no work, until it is time to save or to look after the device. False:
/// closed, and no request is left.
bool Engine::Impl::take_new_requests() {
  const bool has_work = !scheduler.empty() || (cache.entries().is_making() && !draining);
  const auto now = Clock::now();
  auto wake = Clock::time_point::max();
  if (cache.outcomes_file().has_unsaved() && !failed) wake = saved_state + kSaveInterval;
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
    if (scheduler.empty()) device.rest();
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
    cache.outcomes_file().save();
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
    const EntryKeeper& entries = cache.entries();
    entries.store().check_integrity();
    check_held("slabs", device.num_slabs(), scheduler.num_slabs() + entries.num_slabs());
    check_held("entries", device.num_entries(),
               scheduler.num_entries() + static_cast<int64_t>(entries.store().num_entries()));
  } catch (const std::exception& e) {
    give_up(std::string("the accounts are wrong: ") + e.what());
  }
}

/// What takes part in the next forward: entries that are made, then the requests.
std::vector<ForwardPart*> Engine::Impl::select() {
  int room = settings.max_rows_per_forward;
  std::vector<ForwardPart*> parts = cache.entries().making(room);
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
  std::vector<RowResult> results;
  try {
    results = run(parts);
  } catch (const std::exception& e) {
    ++stats.failed_steps;
    log_error("a forward of " + std::to_string(parts.size()) + " parts failed: " + e.what());
    if (device.is_lost()) return;
    if (code_of(e) == ErrorCode::kOutOfMemory && cache.entries().drop_unused() > 0) {
      decode(parts);
    } else if (parts.size() > 1) {
      for (ForwardPart* part : parts) decode({part});
    } else if (parts[0]->shed()) {
      decode(parts);
    } else {
      parts[0]->fail(code_of(e), e.what());
    }
    return;
  }
  // Those that took their results must not run again: what fails from here on is no forward's.
  take(parts, results);
}

std::vector<RowResult> Engine::Impl::run(const std::vector<ForwardPart*>& parts) {
  Forward forward;
  for (ForwardPart* part : parts) part->append_to(forward);
  const auto start = Clock::now();
  // Waking those who wait for updates takes a while: the device has its next work first.
  std::vector<RowResult> results = device.run(forward, [this] { deliver(); });
  count(forward, Clock::now() - start);
  return results;
}

/// Who can't take what is its own ends.
void Engine::Impl::take(const std::vector<ForwardPart*>& parts,
                        std::span<const RowResult> results) {
  for (ForwardPart* part : parts) {
    const auto own = results.first(static_cast<size_t>(part->num_logit_rows()));
    results = results.subspan(own.size());  // before the part moves on
    try {
      part->commit(own);
    } catch (const std::exception& e) {
      if (code_of(e) != ErrorCode::kInvalidRequest) {
        log_failure("results of a forward could not be taken", e.what());
      }
      part->fail(code_of(e), e.what());
    }
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
  sequence.place.leave();
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
  if (sequence.cache.shadow) {
    cache.advance_probe(sequence.cache, results.subspan(num_own), own, decoder.last_commits());
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
    const int begin = canvas.generation_begin();
    // A canvas that grows is not as long as it may become.
    const int end = std::min(canvas.generation_end(), begin + sequence.request.text_limit());
    for (int i = begin; i < end; ++i) {
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

void Engine::Impl::deliver() noexcept {
  for (Outgoing& outgoing : outbox) {
    const bool is_sent = contain("an update could not be sent", [&] {
      outgoing.stream->updates.try_push(std::move(outgoing.update));
    });
    if (!is_sent) outgoing.stream->break_off();
  }
  outbox.clear();
}

void Engine::Impl::fail(std::vector<std::unique_ptr<Sequence>> sequences, ErrorCode code,
                        const std::string& why) {
  deliver();
  for (auto& sequence : sequences) {
    const bool is_told = contain("a request could not be told that it failed",
                                 [&] { tell_failure(*sequence, code, why); });
    if (!is_told) sequence->stream->break_off();
    close(*sequence);
  }
}

void Engine::Impl::tell_failure(const Sequence& sequence, ErrorCode code, const std::string& why) {
  GenerationUpdate update;
  update.index = sequence.index;
  if (sequence.decoder) update.stats = sequence.decoder->stats();
  update.finish = FinishReason::kError;
  update.error_code = static_cast<int>(code);
  update.error_message = why;
  sequence.stream->updates.try_push(std::move(update));
}

/// One that is in the scheduler; it is gone afterwards.
void Engine::Impl::fail(const Sequence& sequence, ErrorCode code, const std::string& why) {
  fail(scheduler.take_if([&](const Sequence& s) { return &s == &sequence; }), code, why);
}

void Engine::Impl::fail_all(ErrorCode code, std::string_view why) noexcept {
  contain("requests could not be told", [&] {
    fail(scheduler.take_if([](const Sequence&) { return true; }), code, std::string(why));
  });
}

/// Nothing that needs the device is done any more.
void Engine::Impl::give_up(const std::string& why) {
  failed = true;  // first: who sees that it drains sees why
  draining = true;
  log_failure("the server ends", why.c_str());
  fail_all(ErrorCode::kDeviceFailed, why);
  cache.entries().give_up_making(ErrorCode::kDeviceFailed, why);
  if (on_failure) on_failure();
}

void Engine::Impl::refuse_when_draining() const {
  if (!draining) return;
  if (failed) throw Error(ErrorCode::kDeviceFailed, "the device failed; the server ends");
  throw Error(ErrorCode::kDraining, "the server is shutting down");
}

/// Accounts for a sequence that goes, with what it holds. Others go with it.
void Engine::Impl::close(Sequence& sequence) noexcept {
  deliver();
  contain("what a request leaves could not be kept", [&] {
    const auto& decoder = sequence.decoder;
    cache.finish(sequence.cache, decoder ? decoder->stats() : GenerationStats{},
                 decoder && decoder->finished());
  });
  sequence.place.leave();
  sequence.release();
  sequence.leave();
}

void Engine::Impl::update_gauges() {
  stats.running = scheduler.num_running();
  stats.slab_tokens_used = capacity_tokens - device.free_tokens();
  is_ready = device.is_ready();
}

}  // namespace bicached
