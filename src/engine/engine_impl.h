#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "bicached/channel.h"
#include "bicached/engine.h"
#include "config/engine_defaults.h"
#include "engine/forward_part.h"
#include "engine/prefix_cache.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/watched_denoiser.h"

namespace bicached {

/// The engine's two sides: what any thread may call (engine.cpp), and the loop of the thread that
/// owns the device (engine_loop.cpp).
struct Engine::Impl {
  using Clock = Sequence::Clock;
  /// Places in the channel beyond the queue's: for commands.
  static constexpr size_t kCommandPlaces = 16;

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

  Impl(std::unique_ptr<Denoiser> denoiser_in, const EngineSettings& settings_in,
       const CacheSettings& cache_settings)
      : device(std::move(denoiser_in), std::chrono::milliseconds(settings_in.device_check_ms)),
        info(device.info()),
        settings(resolve_engine_defaults(settings_in, info)),
        capacity_tokens(device.capacity_tokens()),
        jobs(static_cast<size_t>(settings_in.max_queued) + kCommandPlaces),
        finished(1),
        cache(device, cache_settings),
        scheduler(settings) {
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
  void end_step(const std::exception& error) noexcept;
  bool take_new_requests();
  void arrive(std::unique_ptr<Sequence> arriving);
  void step();
  bool gives_up();
  void check_integrity();
  std::vector<ForwardPart*> select();
  void decode(const std::vector<ForwardPart*>& parts);
  std::vector<RowResult> run(const std::vector<ForwardPart*>& parts);
  void take(const std::vector<ForwardPart*>& parts, std::span<const RowResult> results);
  void drop_cancelled_and_expired();
  Placement place(Sequence& sequence);
  Placement try_place(Sequence& sequence);
  Lease open_slab(int num_tokens);
  void count(const Forward& forward, Clock::duration took);
  void take_results(Sequence& sequence, std::span<const RowResult> results);
  void publish(Sequence& sequence);
  void deliver() noexcept;
  void fail(std::vector<std::unique_ptr<Sequence>> sequences, ErrorCode code,
            const std::string& why);
  void tell_failure(const Sequence& sequence, ErrorCode code, const std::string& why);
  void fail(const Sequence& sequence, ErrorCode code, const std::string& why);
  void fail_all(ErrorCode code, std::string_view why) noexcept;
  void give_up(const std::string& why);
  void refuse_when_draining() const;
  void close(Sequence& sequence) noexcept;
  void update_gauges();

  WatchedDenoiser device;
  const ModelInfo info;
  const EngineSettings settings;
  const int64_t capacity_tokens;
  EngineStats stats;  // before what has sequences: they count in it
  Channel<Job> jobs;
  Channel<bool> finished;  // closed when the thread has ended its work
  std::atomic<bool> draining{false};
  std::atomic<bool> aborted{false};
  std::atomic<bool> failed{false};   // the device; also draining then
  std::atomic<bool> is_ready{true};  // the device, as far as it was checked
  std::function<void()> on_failure;
  std::atomic<int64_t> mean_request_us{1000000};  // of finished requests, for Retry-After
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

}  // namespace bicached
