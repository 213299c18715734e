#include "http/generate.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "base/log.h"
#include "bicached/error.h"
#include "http/answer_writer.h"
#include "http/choice.h"
#include "http/client_watch.h"
#include "http/errors.h"
#include "http/prompt_scores.h"

namespace bicached {
namespace {

using Clock = std::chrono::steady_clock;

/// When a choice's tokens came.
struct TokenTimes {
  Clock::time_point first, last;
  size_t num_later = 0;  // tokens that came after the first ones

  void note(size_t num_tokens) {
    last = Clock::now();
    if (first == Clock::time_point{}) {
      first = last;
    } else {
      num_later += num_tokens;
    }
  }
};

/// For log and metrics: nothing is sent.
HttpReply reply_to_nobody(std::shared_ptr<AccessNote> note) {
  HttpReply reply;
  reply.status = kStatusClientGone;
  reply.note = std::move(note);
  return reply;
}

/// A submitted job and its answer so far. Destroying it cancels what still runs. One thread.
class Generation {
 public:
  Generation(Job job, const HttpRequest& request, const GenerateContext& context)
      : job_(std::move(job)),
        request_(request),
        context_(context),
        writer_(make_writer(job_, context.tokenizer, request.id)),
        start_(Clock::now()) {
    times_.resize(job_.canvases.size());
    for (const GenerateRequest& canvas : job_.canvases) {
      choices_.emplace_back(context.tokenizer, job_.stops, canvas);
    }
    note_->prompt_tokens = job_.prompt_tokens;
    if (job_.is_empty()) {
      finish_all();
      return;
    }
    std::vector<GenerateRequest> canvases = job_.canvases;
    for (size_t i = 0; i < canvases.size(); ++i) {
      canvases[i].id = request.id;
      if (canvases.size() > 1) canvases[i].id.append("#").append(std::to_string(i));
      canvases[i].deadline = start_ + context.request_timeout;
    }
    stream_.emplace(context.engine.submit(std::move(canvases)));
  }

  ~Generation() {
    note_->completion_tokens = total_completion_tokens(choices_);
    contain("a request is missing in the metrics",
            [this] { context_.metrics.finish_request(total_stats(), seconds_since_start()); });
  }
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  HttpReply answer_plain();
  /// Throws nothing: a failure becomes the error event.
  void answer_stream(const WriteBytes& write);

  std::shared_ptr<AccessNote> note() const { return note_; }

 private:
  enum class Wait { kUpdate, kTimeout, kGone, kSendsNoMore };

  /// The next update of a canvas that is not finished; looks after the client meanwhile. Throws
  /// where none will come.
  Wait wait_for_update(Clock::time_point until, GenerationUpdate& update);
  ChoiceDelta accept(const GenerationUpdate& update);
  /// Nothing is to be generated.
  void finish_all() {
    GenerationUpdate update;
    update.finish = FinishReason::kLength;
    for (Choice& choice : choices_) choice.accept(update);
  }
  bool all_finished() const {
    return std::all_of(choices_.begin(), choices_.end(),
                       [](const Choice& c) { return c.finished(); });
  }
  bool stream_updates(const WriteBytes& write);
  bool write_update(const WriteBytes& write, const GenerationUpdate& update);
  RequestTotals total_stats() const;
  double seconds_since_start() const {
    return std::chrono::duration<double>(Clock::now() - start_).count();
  }

  const Job job_;
  const HttpRequest request_;
  const GenerateContext context_;
  const std::unique_ptr<AnswerWriter> writer_;
  const Clock::time_point start_;
  ClientWatch client_{request_, job_.stream};
  std::vector<TokenTimes> times_;  // of each choice
  bool asked_for_ = false;         // a client that sends no more was sent something
  std::vector<Choice> choices_;
  std::optional<ResponseStream> stream_;
  const std::shared_ptr<AccessNote> note_ = std::make_shared<AccessNote>();
};

Generation::Wait Generation::wait_for_update(Clock::time_point until, GenerationUpdate& update) {
  while (true) {
    const ClientState client = client_.look();
    if (client == ClientState::kGone) return Wait::kGone;
    if (client == ClientState::kSendsNoMore && !asked_for_) return Wait::kSendsNoMore;
    if (std::optional<GenerationUpdate> next =
            stream_->next_until(std::min(until, client_.next_look()))) {
      update = std::move(*next);
      return Wait::kUpdate;
    }
    if (stream_->is_done()) throw Error(ErrorCode::kInternal, "the engine ended without a result");
    if (Clock::now() >= until) return Wait::kTimeout;
  }
}

ChoiceDelta Generation::accept(const GenerationUpdate& update) {
  if (update.finish == FinishReason::kError) {
    throw Error(static_cast<ErrorCode>(update.error_code), update.error_message);
  }
  Choice& choice = choices_[static_cast<size_t>(update.index)];
  if (!update.tokens.empty()) times_[static_cast<size_t>(update.index)].note(update.tokens.size());
  ChoiceDelta delta = choice.accept(update);
  if (choice.stopped_early()) stream_->cancel(update.index);
  return delta;
}

RequestTotals Generation::total_stats() const {
  RequestTotals totals;
  totals.prompt_tokens = job_.prompt_tokens;
  totals.completion_tokens = total_completion_tokens(choices_);
  for (const Choice& choice : choices_) {
    const GenerationStats& stats = choice.stats();
    if (stats.first_token_us > 0) {
      totals.first_token_s.push_back(static_cast<double>(stats.first_token_us) / 1e6);
      totals.queued_s.push_back(static_cast<double>(stats.queued_us) / 1e6);
    }
    if (choice.finished() && stats.cache == "hit") totals.cache_depths.push_back(stats.depth);
  }
  for (const TokenTimes& times : times_) {
    if (times.num_later == 0) continue;
    const std::chrono::duration<double> seconds = times.last - times.first;
    totals.between_tokens_s.push_back(seconds.count() / static_cast<double>(times.num_later));
  }
  return totals;
}

HttpReply Generation::answer_plain() {
  std::vector<ChoiceDelta> wholes(choices_.size());
  while (!all_finished()) {
    GenerationUpdate update;
    if (wait_for_update(Clock::time_point::max(), update) == Wait::kGone) {
      return reply_to_nobody(note_);
    }
    ChoiceDelta delta = accept(update);
    ChoiceDelta& whole = wholes[static_cast<size_t>(update.index)];
    whole.text += delta.text;
    for (ChoiceToken& token : delta.tokens) whole.tokens.push_back(std::move(token));
  }
  HttpReply reply;
  reply.body = writer_->plain(choices_, wholes);
  reply.note = note_;
  return reply;
}

/// False: the client is gone.
bool Generation::write_update(const WriteBytes& write, const GenerationUpdate& update) {
  const size_t index = static_cast<size_t>(update.index);
  if (choices_[index].finished()) return true;
  const ChoiceDelta delta = accept(update);
  std::string events;
  if (job_.diffusion_stream && !update.canvas.empty()) events += writer_->canvas(update);
  events += writer_->text(index, delta);
  if (choices_[index].finished()) events += writer_->finish(index, choices_[index]);
  return events.empty() || write(events);
}

/// False: the client is gone.
bool Generation::stream_updates(const WriteBytes& write) {
  for (size_t i = 0; i < choices_.size(); ++i) {
    std::string events = writer_->begin(i);
    if (choices_[i].finished()) events += writer_->finish(i, choices_[i]);
    if (!write(events)) return false;
  }
  while (!all_finished()) {
    GenerationUpdate update;
    switch (wait_for_update(Clock::now() + context_.ping_interval, update)) {
      case Wait::kGone: return false;
      case Wait::kSendsNoMore:  // to one that is gone this is an error, and the next look sees it
        asked_for_ = true;
        [[fallthrough]];
      case Wait::kTimeout:
        if (!write(": ping\n\n")) return false;
        break;
      case Wait::kUpdate:
        if (!write_update(write, update)) return false;
        break;
    }
  }
  return write(writer_->end(choices_));
}

void Generation::answer_stream(const WriteBytes& write) {
  try {
    stream_updates(write);
  } catch (...) {
    const Error error = to_error(std::current_exception());
    log_error("request " + request_.id + " failed while streaming: " + log_escape(error.what()));
    write(writer_->failure(error_json(error, request_.id)));
  }
}

}  // namespace

HttpReply run_job(Job job, const HttpRequest& request, const GenerateContext& context) {
  const bool streamed = job.stream;
  if (!score_prompts(job, request, context)) {
    return reply_to_nobody(std::make_shared<AccessNote>());
  }
  auto generation = std::make_shared<Generation>(std::move(job), request, context);
  if (!streamed) return generation->answer_plain();
  HttpReply reply;
  reply.content_type = "text/event-stream; charset=utf-8";  // some clients guess Latin-1
  reply.headers.emplace_back("Cache-Control", "no-cache");
  reply.headers.emplace_back("X-Accel-Buffering", "no");  // nginx would hold the events back
  reply.note = generation->note();
  reply.stream = [generation = std::move(generation)](const WriteBytes& write) mutable {
    generation->answer_stream(write);
    generation.reset();  // before the access log, which reads the note
  };
  return reply;
}

}  // namespace bicached
