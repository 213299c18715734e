// Random faults of the device under random requests: what was accepted ends once, what was held is
// given back, and the engine serves on when the device does.
//
// BICACHED_FAULT_SCHEDULES: how many schedules; BICACHED_FAULT_SEED: the first one's seed. A
// failure names its seed and its faults. Threads differ from run to run, so a seed may need several
// tries.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <thread>

#include "base/log.h"
#include "bicached/engine.h"
#include "bicached/error.h"
#include "engine/fake_denoiser.h"
#include "engine/faulty_denoiser.h"
#include "engine/watched_denoiser.h"

namespace bicached {
namespace {

using namespace std::chrono_literals;

int number_of(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : otherwise;
}

class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}
  /// In [low, high].
  int in(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool one_in(int n) { return in(1, n) == 1; }
  template <class T>
  const T& of(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(in(0, static_cast<int>(choices.size()) - 1))];
  }

 private:
  std::mt19937_64 random_;
};

/// What a client does with one job.
struct Client {
  std::vector<GenerateRequest> canvases;
  int drops_after = -1;  // so many updates; -1: reads to the end
  int cancels = -1;      // this canvas, after its first update
};

struct Plan {
  std::vector<Fault> faults;
  EngineSettings settings;
  CacheSettings cache;
  int64_t capacity_tokens = 0;
  int attention_block = 0;
  bool blocks_alone = false;
  bool submits_before_start = false;
  bool stops_early = false;  // while requests run
  bool clears = false;
  std::vector<std::vector<TokenId>> pinned;
  std::vector<Client> clients;
};

Fault random_fault(Dice& dice) {
  Fault fault;
  fault.call = dice.of<DeviceCall>({DeviceCall::kForward, DeviceCall::kForward,
                                    DeviceCall::kForward, DeviceCall::kOpen, DeviceCall::kOpen,
                                    DeviceCall::kClose, DeviceCall::kClose, DeviceCall::kCreate,
                                    DeviceCall::kFill, DeviceCall::kLoad, DeviceCall::kDestroy});
  if (dice.one_in(100)) fault.call = DeviceCall::kBegin;
  fault.kind =
      dice.of<FaultKind>({FaultKind::kInternal, FaultKind::kOutOfMemory, FaultKind::kOutOfMemory,
                          FaultKind::kBadAlloc, FaultKind::kOther});
  if (dice.one_in(20)) fault.kind = FaultKind::kDeviceFailed;
  if (fault.call == DeviceCall::kForward && dice.one_in(4)) fault.kind = FaultKind::kNaN;
  fault.from = dice.one_in(3) ? 0 : dice.in(0, fault.call == DeviceCall::kForward ? 60 : 12);
  fault.count = dice.one_in(2) ? 1 : dice.one_in(8) ? Fault::kForEver : dice.in(2, 8);
  fault.after_work = dice.one_in(2);
  return fault;
}

std::vector<TokenId> text_of(Dice& dice, int length) {
  std::vector<TokenId> ids;
  for (int i = 0; i < length; ++i) ids.push_back('A' + dice.in(0, 25));
  return ids;
}

GenerateRequest random_request(Dice& dice, const Plan& plan,
                               const std::vector<std::vector<TokenId>>& prefixes) {
  GenerateRequest request;
  if (!dice.one_in(4)) {
    request.prompt_ids = dice.of(prefixes);
    if (!dice.one_in(4)) {
      request.prefix_boundaries = {static_cast<int>(request.prompt_ids.size())};
    }
  }
  const std::vector<TokenId> question = text_of(dice, dice.in(1, 6));
  request.prompt_ids.insert(request.prompt_ids.end(), question.begin(), question.end());
  request.gen_length = dice.in(1, 24);
  request.decode.block_length = plan.attention_block > 0 ? plan.attention_block : dice.in(1, 12);
  request.decode.steps = dice.in(1, request.gen_length);
  request.decode.algorithm =
      dice.of<std::string>({"low_confidence", "threshold", "random", "klass", "entropy"});
  request.decode.eos_early_stop = !dice.one_in(4);
  if (dice.one_in(4)) request.grows_to = request.gen_length + dice.in(1, 20);
  if (dice.one_in(6) && plan.attention_block == 0) request.decode.cfg_scale = 1;
  if (dice.one_in(3)) {
    request.decode.intra_cache = dice.of<IntraCache>(
        {IntraCache::kNone, IntraCache::kPrefix, IntraCache::kDual, IntraCache::kAdaptive});
  }
  request.cache.policy = dice.of<std::string>({"", "", "off", "off", "full", "fixed", "measured"});
  request.cache.depth = dice.in(0, 4);
  if (dice.one_in(4)) request.cache.refresh_depth = dice.in(0, 4);
  if (dice.one_in(4)) request.cache.refresh_interval = dice.in(1, 4);
  if (dice.one_in(8)) request.cache.salt = "tenant";
  request.cache.deterministic = dice.one_in(8);
  if (dice.one_in(3)) request.sampling.temperature = 1;
  if (dice.one_in(3)) request.sampling.num_top_logprobs = dice.in(0, 3);
  request.wants_canvas = dice.one_in(4);
  if (dice.one_in(20)) {
    request.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(dice.in(0, 3));
  }
  return request;
}

Plan random_plan(uint64_t seed) {
  Dice dice(seed);
  Plan plan;
  const int num_faults = dice.in(1, 3);
  for (int i = 0; i < num_faults; ++i) plan.faults.push_back(random_fault(dice));
  plan.settings.max_running = dice.in(1, 6);
  plan.settings.max_queued = dice.in(4, 20);
  plan.settings.max_rows_per_forward = dice.of<int>({64, 128, 4096});
  plan.settings.max_age_ms = dice.of<int>({0, 2000});
  plan.settings.integrity_checks = true;
  plan.settings.device_check_ms = 1;
  plan.cache.policy = dice.of<std::string>({"off", "full", "fixed", "measured", "measured"});
  plan.cache.depth = dice.in(0, 4);
  plan.cache.surveys = dice.one_in(2);
  plan.cache.probe_budget = dice.of<double>({0.0, 0.03, 1.0});
  plan.cache.max_disagreement = dice.of<double>({0.03, 1.0});
  plan.cache.min_uses = dice.in(1, 2);
  plan.cache.min_prefix_len = 8;
  plan.cache.cache_bytes = dice.of<int>({0, 100, 400, 1 << 20});
  plan.capacity_tokens = dice.of<int>({120, 200, 1000, 1 << 20});
  plan.attention_block = dice.one_in(5) ? 4 : 0;
  plan.blocks_alone = dice.one_in(5);
  plan.submits_before_start = dice.one_in(2);
  plan.stops_early = dice.one_in(10);
  plan.clears = dice.one_in(4);
  std::vector<std::vector<TokenId>> prefixes;
  for (int i = 0; i < 3; ++i) prefixes.push_back(text_of(dice, dice.in(8, 40)));
  if (dice.one_in(4)) plan.pinned.push_back(prefixes[0]);
  const int num_clients = dice.in(1, 8);
  for (int i = 0; i < num_clients; ++i) {
    Client client;
    const int num_canvases = dice.one_in(4) ? dice.in(2, 3) : 1;
    for (int k = 0; k < num_canvases; ++k) {
      client.canvases.push_back(random_request(dice, plan, prefixes));
    }
    if (dice.one_in(8)) client.drops_after = dice.in(0, 4);
    if (dice.one_in(8)) client.cancels = dice.in(0, num_canvases - 1);
    plan.clients.push_back(std::move(client));
  }
  return plan;
}

constexpr const char* kCalls[] = {"begin",  "open", "close", "forward",
                                  "create", "fill", "load",  "destroy"};

std::string describe(const Plan& plan) {
  static const char* const kKinds[] = {"internal",  "out of memory", "device failed",
                                       "bad_alloc", "other",         "NaN"};
  std::ostringstream text;
  for (const Fault& fault : plan.faults) {
    text << kCalls[static_cast<int>(fault.call)] << " from " << fault.from << ", ";
    if (fault.count == Fault::kForEver) {
      text << "for ever";
    } else {
      text << fault.count << " times";
    }
    text << ": " << kKinds[static_cast<int>(fault.kind)] << (fault.after_work ? " (after)" : "")
         << "; ";
  }
  return text.str();
}

/// Whether what the engine writes is what a working device makes of the request, whoever runs
/// beside it.
bool is_exact(const GenerateRequest& request) {
  return (request.cache.policy == "off" && !request.cache.refresh_depth &&
          !request.decode.intra_cache) ||
         request.cache.deterministic;
}

bool is_of_prefix_cache(const Fault& fault) {
  return fault.kind != FaultKind::kDeviceFailed &&
         (fault.call == DeviceCall::kCreate || fault.call == DeviceCall::kFill ||
          fault.call == DeviceCall::kLoad);
}

/// One that no request can be served with.
bool breaks_for_ever(const Fault& fault) {
  return fault.count == Fault::kForEver &&
         (fault.call == DeviceCall::kForward || fault.call == DeviceCall::kOpen ||
          fault.call == DeviceCall::kClose || fault.call == DeviceCall::kDestroy);
}

struct Outcome {
  std::map<int, std::string> texts;
  std::map<int, GenerationUpdate> last;  // with a reason to finish
};

class FaultTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { log_setup("error", "text", "/dev/null"); }
  static void TearDownTestSuite() { log_setup("info", "text"); }

  void make_engine(const Plan& plan, std::vector<Fault> faults) {
    device = std::make_shared<FakeDenoiser::Control>();
    device->attention_block = plan.attention_block;
    device->block_rows = plan.blocks_alone ? 12 : 0;
    faulty = std::make_shared<FaultyDenoiser::Control>();
    faulty->faults = std::move(faults);
    auto fake = std::make_unique<FakeDenoiser>(device, plan.capacity_tokens);
    engine = std::make_unique<Engine>(std::make_unique<FaultyDenoiser>(std::move(fake), faulty),
                                      plan.settings, plan.cache);
    num_told = 0;
  }
  void start() {
    engine->start([this] { ++num_told; });
  }

  std::optional<ResponseStream> submit(std::vector<GenerateRequest> canvases) {
    try {
      return engine->submit(std::move(canvases));
    } catch (const Error& error) {
      const ErrorCode code = error.code();
      EXPECT_TRUE(code == ErrorCode::kQueueFull || code == ErrorCode::kDeviceFailed ||
                  code == ErrorCode::kContextLengthExceeded)
          << error.what();
      return std::nullopt;
    }
  }

  /// Reads as the client does; checks that every canvas ends once.
  Outcome read(ResponseStream stream, const Client& client) {
    Outcome outcome;
    const auto deadline = std::chrono::steady_clock::now() + 30s;
    std::map<int, int> num_updates;
    int num_read = 0;
    while (client.drops_after < 0 || num_read < client.drops_after) {
      std::optional<GenerationUpdate> update = stream.next_until(deadline);
      if (!update) {
        EXPECT_TRUE(stream.is_done()) << "a request hangs";
        break;
      }
      ++num_read;
      const int index = update->index;
      EXPECT_FALSE(outcome.last.contains(index)) << "an update behind the last one";
      for (const DecidedToken& token : update->tokens) {
        outcome.texts[index] += static_cast<char>(token.token);
        EXPECT_FALSE(std::isnan(token.logprob));
      }
      if (update->finish != FinishReason::kNone) outcome.last[index] = *update;
      if (index == client.cancels && num_updates[index]++ == 0) stream.cancel(index);
    }
    if (client.drops_after >= 0) return outcome;
    for (int i = 0; i < static_cast<int>(client.canvases.size()); ++i) {
      if (i != client.cancels) {
        EXPECT_TRUE(outcome.last.contains(i)) << "canvas " << i << " never ended";
      }
    }
    return outcome;
  }

  /// One request that fits anywhere.
  static Client small_client() {
    Client client;
    GenerateRequest& request = client.canvases.emplace_back();
    request.prompt_ids = {'o', 'n'};
    request.gen_length = request.decode.block_length = 4;
    return client;
  }

  template <class Condition>
  static bool eventually(Condition condition) {
    for (int i = 0; i < 20000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::microseconds(i < 100 ? 20 : 1000));
    }
    return false;
  }

  std::vector<Outcome> run_clients(const Plan& plan);
  void compare_texts(const Plan& plan, const std::vector<Outcome>& outcomes);
  void settle();
  void check_served_on();
  void check_ended();
  void run_schedule(const Plan& plan);

  std::shared_ptr<FakeDenoiser::Control> device;
  std::shared_ptr<FaultyDenoiser::Control> faulty;
  std::unique_ptr<Engine> engine;
  std::atomic<int> num_told{0};
  std::array<int64_t, kNumDeviceCalls> num_failed{};
};

std::vector<Outcome> FaultTest::run_clients(const Plan& plan) {
  std::vector<std::optional<ResponseStream>> streams;
  if (!plan.submits_before_start) start();
  for (const auto& pinned : plan.pinned) {
    if (plan.submits_before_start) break;  // only after the start
    try {
      engine->warm_prefix(pinned, true).get();
    } catch (const Error&) {
      // It finds no room, or the device fails.
    }
  }
  for (const Client& client : plan.clients) streams.push_back(submit(client.canvases));
  if (plan.submits_before_start) start();
  if (plan.clears) {
    try {
      engine->clear_cache();
      engine->cache_report();
    } catch (const Error& error) {
      EXPECT_TRUE(engine->has_failed()) << error.what();
    }
  }
  if (plan.stops_early) engine->stop(1ms);
  std::vector<Outcome> outcomes;
  for (size_t i = 0; i < streams.size(); ++i) {
    outcomes.emplace_back();
    if (streams[i]) outcomes.back() = read(std::move(*streams[i]), plan.clients[i]);
  }
  return outcomes;
}

/// What was decided in spite of faults is what is decided without.
void FaultTest::compare_texts(const Plan& plan, const std::vector<Outcome>& outcomes) {
  make_engine(plan, {});
  start();
  for (size_t i = 0; i < outcomes.size(); ++i) {
    for (const auto& [index, last] : outcomes[i].last) {
      GenerateRequest request = plan.clients[i].canvases[static_cast<size_t>(index)];
      if (last.finish == FinishReason::kError || !is_exact(request)) continue;
      request.deadline.reset();
      Client again;
      again.canvases.push_back(std::move(request));
      std::optional<ResponseStream> stream = submit(again.canvases);
      ASSERT_TRUE(stream);
      const Outcome expected = read(std::move(*stream), again);
      const auto text = outcomes[i].texts.find(index);
      const auto right = expected.texts.find(0);
      EXPECT_EQ(text == outcomes[i].texts.end() ? "" : text->second,
                right == expected.texts.end() ? "" : right->second);
    }
  }
  engine.reset();
}

/// What clients have dropped runs on for a while.
void FaultTest::settle() {
  EXPECT_TRUE(eventually([&] { return engine->stats().queued == 0; }));
  try {
    engine->cache_report();  // behind the step that took the last one in
  } catch (const Error& error) {
    EXPECT_TRUE(engine->has_failed()) << error.what();
  }
  EXPECT_TRUE(eventually([&] { return engine->stats().running == 0; }));
}

/// The device works again.
void FaultTest::check_served_on() {
  faulty->is_repaired = true;
  const Client client = small_client();
  EXPECT_TRUE(eventually([&] { return engine->is_ready() && engine->stats().queued == 0; }));
  std::optional<ResponseStream> stream = submit(client.canvases);
  ASSERT_TRUE(stream);
  const Outcome outcome = read(std::move(*stream), client);
  ASSERT_TRUE(outcome.last.contains(0));
  EXPECT_NE(outcome.last.at(0).finish, FinishReason::kError) << outcome.last.at(0).error_message;
  // Clients that are gone have left nothing, and what could not be given back was.
  EXPECT_TRUE(eventually([&] { return device->num_open_slabs == 0; }))
      << device->num_open_slabs << " slabs are left";
  EXPECT_TRUE(
      eventually([&] { return engine->stats().running == 0 && engine->stats().queued == 0; }));
  const auto entries_add_up = [&] {
    const CacheReport report = engine->cache_report();
    return static_cast<int>(report.entries.size()) == device->num_entries &&
           report.bytes == device->entry_bytes;
  };
  EXPECT_TRUE(eventually(entries_add_up)) << device->num_entries << " entries are there";
  engine->clear_cache();
  EXPECT_TRUE(eventually(entries_add_up)) << device->num_entries << " entries are there";
}

/// A device that stays broken: the engine says so, takes nothing more, and can be stopped.
void FaultTest::check_ended() {
  for (int i = 0; i < 100 && !engine->has_failed(); ++i) {
    const Client client = small_client();
    if (std::optional<ResponseStream> stream = submit(client.canvases)) {
      read(std::move(*stream), client);
    }
  }
  EXPECT_TRUE(eventually([&] { return engine->has_failed(); })) << "goes on for ever";
  EXPECT_TRUE(eventually([&] { return num_told == 1; }));
  EXPECT_FALSE(engine->is_ready());
  try {
    engine->submit(small_client().canvases);
    ADD_FAILURE() << "took a request";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDeviceFailed);
  }
}

void FaultTest::run_schedule(const Plan& plan) {
  make_engine(plan, plan.faults);
  const std::vector<Outcome> outcomes = run_clients(plan);
  if (std::ranges::all_of(plan.faults, is_of_prefix_cache) && !plan.stops_early) {
    for (const Outcome& outcome : outcomes) {
      for (const auto& [index, last] : outcome.last) {
        const bool in_time = last.error_code != static_cast<int>(ErrorCode::kDeadlineExceeded);
        EXPECT_FALSE(last.finish == FinishReason::kError && in_time) << last.error_message;
      }
    }
  }
  if (!plan.stops_early) {
    settle();
    bool is_broken = false;
    int64_t num_told_to_fail = 0;
    bool may_end = false;
    for (size_t i = 0; i < plan.faults.size(); ++i) {
      const Fault& fault = plan.faults[i];
      const bool breaks = breaks_for_ever(fault) || fault.kind == FaultKind::kDeviceFailed;
      is_broken = is_broken || (breaks && faulty->num_hits[i] > 0);
      num_told_to_fail += fault.count;
      may_end =
          may_end || fault.kind == FaultKind::kDeviceFailed || fault.call == DeviceCall::kBegin;
    }
    may_end = may_end || num_told_to_fail >= WatchedDenoiser::kMostFailedChecks;
    if (engine->has_failed() || is_broken) {
      EXPECT_TRUE(may_end) << "ended, though the device works";
      check_ended();
    } else {
      check_served_on();
    }
  }
  engine->stop(10s);
  EXPECT_LE(num_told, 1);
  engine.reset();
  for (size_t i = 0; i < num_failed.size(); ++i) num_failed[i] += faulty->num_failed[i];
  compare_texts(plan, outcomes);
}

TEST_F(FaultTest, EveryRequestEndsOnceAndAccountsAreInBalance) {
  const int num_schedules = number_of("BICACHED_FAULT_SCHEDULES", 300);
  const auto first = static_cast<uint64_t>(number_of("BICACHED_FAULT_SEED", 1));
  num_failed = {};
  for (uint64_t seed = first; seed < first + static_cast<uint64_t>(num_schedules); ++seed) {
    const Plan plan = random_plan(seed);
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(plan));
    run_schedule(plan);
    ASSERT_FALSE(HasFailure());
  }
  for (int call = 0; call < kNumDeviceCalls; ++call) {
    EXPECT_GT(num_failed[static_cast<size_t>(call)], 0) << "nothing failed at " << kCalls[call];
  }
}

}  // namespace
}  // namespace bicached
