#include "bicached/engine.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <thread>

#include "bicached/error.h"
#include "engine/fake_denoiser.h"
#include "engine/scheduler.h"

namespace bicached {
namespace {

using namespace std::chrono_literals;

GenerateRequest request_of(const std::string& prompt, int gen_length = 32) {
  GenerateRequest request;
  request.prompt_ids.assign(prompt.begin(), prompt.end());
  request.gen_length = gen_length;
  request.decode.block_length = 8;
  request.decode.steps = gen_length;
  return request;
}

struct Answer {
  std::string text;
  GenerationUpdate last;
};

std::map<int, Answer> read_all(ResponseStream stream) {
  std::map<int, Answer> answers;
  while (auto update = stream.next()) {
    for (const DecidedToken& t : update->tokens) {
      answers[update->index].text += static_cast<char>(t.token);
    }
    answers[update->index].last = *update;
  }
  return answers;
}

class EngineTest : public testing::Test {
 protected:
  void start(EngineSettings settings = {}, int64_t capacity_tokens = 1 << 20) {
    settings.integrity_checks = true;
    engine = std::make_unique<Engine>(std::make_unique<FakeDenoiser>(control, capacity_tokens),
                                      settings, CacheSettings{});
    engine->start();
  }

  Answer ask(GenerateRequest request) {
    std::vector<GenerateRequest> job;
    job.push_back(std::move(request));
    return read_all(engine->submit(std::move(job)))[0];
  }

  ResponseStream submit(GenerateRequest request) {
    std::vector<GenerateRequest> job;
    job.push_back(std::move(request));
    return engine->submit(std::move(job));
  }

  /// Waits, with a limit, until the condition holds.
  template <typename Condition>
  static bool eventually(Condition condition) {
    for (int i = 0; i < 2000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(1ms);
    }
    return false;
  }

  std::shared_ptr<FakeDenoiser::Control> control = std::make_shared<FakeDenoiser::Control>();
  std::unique_ptr<Engine> engine;
};

TEST_F(EngineTest, AnswersAndGivesMemoryBack) {
  start();
  const Answer answer = ask(request_of("hello"));
  EXPECT_FALSE(answer.text.empty());
  EXPECT_NE(answer.last.finish, FinishReason::kNone);
  EXPECT_EQ(answer.last.stats.prompt_tokens, 5);
  EXPECT_EQ(answer.last.stats.completion_tokens, static_cast<int>(answer.text.size()));
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; }));
}

TEST_F(EngineTest, AGuidedRequestHoldsTwoSlabsAndGivesBothBack) {
  start();
  GenerateRequest request = request_of("hello");
  request.decode.cfg_scale = 1;
  const std::string alone = ask(request).text;
  EXPECT_FALSE(alone.empty());
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; }));
  control->forward_ms = 1;
  std::vector<ResponseStream> streams;
  for (int i = 0; i < 4; ++i) streams.push_back(submit(request));
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs >= 2; }));
  for (ResponseStream& stream : streams) EXPECT_EQ(read_all(std::move(stream))[0].text, alone);
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; }));
}

TEST_F(EngineTest, AGuidedRequestNeedsRoomForTwoCanvases) {
  start({}, 100);
  GenerateRequest request = request_of("hello", 60);
  EXPECT_FALSE(ask(request).text.empty());
  request.decode.cfg_scale = 1;
  try {
    ask(request);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kContextLengthExceeded);
    EXPECT_NE(std::string(error.what()).find("the longest canvas is 50"), std::string::npos)
        << error.what();
  }
}

TEST_F(EngineTest, AnswerIsTheSameAloneAndInABatch) {
  start();
  std::vector<std::string> alone;
  for (int i = 0; i < 12; ++i) alone.push_back(ask(request_of("prompt" + std::to_string(i))).text);
  control->forward_ms = 1;
  std::vector<std::thread> clients;
  std::vector<std::string> together(12);
  for (int i = 0; i < 12; ++i) {
    clients.emplace_back([&, i] {
      together[static_cast<size_t>(i)] = ask(request_of("prompt" + std::to_string(i))).text;
    });
  }
  for (auto& client : clients) client.join();
  EXPECT_EQ(together, alone);
  EXPECT_GT(control->max_canvases_seen, 1);
}

TEST_F(EngineTest, AJobOfSeveralCanvasesAnswersEach) {
  start();
  std::vector<GenerateRequest> job;
  for (int i = 0; i < 3; ++i) job.push_back(request_of("x" + std::to_string(i)));
  const auto answers = read_all(engine->submit(std::move(job)));
  ASSERT_EQ(answers.size(), 3u);
  for (const auto& [index, answer] : answers) EXPECT_NE(answer.last.finish, FinishReason::kNone);
}

TEST_F(EngineTest, FullQueueIsRefusedAndLosesNothing) {
  EngineSettings settings;
  settings.max_running = 1;
  settings.max_queued = 2;
  start(settings);
  control->forward_ms = 20;
  std::vector<ResponseStream> accepted;
  int refused = 0;
  for (int i = 0; i < 10; ++i) {
    try {
      accepted.push_back(submit(request_of("q" + std::to_string(i))));
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kQueueFull);
      ++refused;
    }
  }
  EXPECT_GE(refused, 7);
  EXPECT_GE(engine->retry_after_s(), 1);
  control->forward_ms = 0;
  for (auto& stream : accepted) EXPECT_EQ(read_all(std::move(stream)).size(), 1u);
  EXPECT_TRUE(
      eventually([&] { return engine->stats().queued == 0 && control->num_open_slabs == 0; }));
}

TEST_F(EngineTest, MoreCanvasesThanTheQueueHoldsIsARequestError) {
  EngineSettings settings;
  settings.max_queued = 2;
  start(settings);
  std::vector<GenerateRequest> job;
  for (int i = 0; i < 3; ++i) job.push_back(request_of("x"));
  try {
    engine->submit(std::move(job));
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidRequest);
    EXPECT_EQ(e.param(), "n");
  }
}

TEST_F(EngineTest, TooLongACanvasIsRefusedWithTheNumbers) {
  start({}, 100);
  try {
    submit(request_of(std::string(90, 'x'), 32));
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kContextLengthExceeded);
    EXPECT_NE(std::string(e.what()).find("122"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("100"), std::string::npos) << e.what();
  }
}

TEST_F(EngineTest, RequestsWaitForMemoryAndAllFinish) {
  start({}, 100);  // two canvases of 37 tokens at a time
  std::vector<ResponseStream> streams;
  for (int i = 0; i < 8; ++i) streams.push_back(submit(request_of("wait" + std::to_string(i))));
  for (auto& stream : streams) {
    EXPECT_NE(read_all(std::move(stream))[0].last.finish, FinishReason::kNone);
  }
  EXPECT_LE(control->max_canvases_seen, 2);
}

TEST_F(EngineTest, ADestroyedStreamStopsCostingForwards) {
  start();
  control->forward_ms = 2;
  control->end_one_in = 0;
  {
    auto stream = submit(request_of("gone", 512));
    ASSERT_TRUE(stream.next());
  }
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; }));
  const int forwards = control->num_forwards;
  std::this_thread::sleep_for(30ms);
  EXPECT_LE(control->num_forwards, forwards + 1);
  EXPECT_EQ(engine->stats().cancelled, 1);
}

TEST_F(EngineTest, CancellingOneCanvasLetsTheOthersFinish) {
  start();
  control->end_one_in = 0;
  std::vector<GenerateRequest> job;
  for (int i = 0; i < 2; ++i) job.push_back(request_of("pair" + std::to_string(i), 64));
  auto stream = engine->submit(std::move(job));
  stream.cancel(0);
  FinishReason second = FinishReason::kNone;
  while (auto update = stream.next()) {
    if (update->index == 1) second = update->finish;
  }
  EXPECT_EQ(second, FinishReason::kLength);
}

TEST_F(EngineTest, ABadRequestInABatchFailsAloneAndTheOthersFinish) {
  start();
  const std::string expected = ask(request_of("good", 64)).text;
  control->poison = '!';
  control->forward_ms = 1;
  auto good = submit(request_of("good", 64));
  const Answer bad = ask(request_of("bad!"));
  EXPECT_EQ(bad.last.finish, FinishReason::kError);
  EXPECT_EQ(bad.last.error_code, static_cast<int>(ErrorCode::kInternal));
  const Answer answer = read_all(std::move(good))[0];
  EXPECT_NE(answer.last.finish, FinishReason::kError);
  EXPECT_EQ(answer.text, expected);
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; }));
}

TEST_F(EngineTest, WhereNoTokenMayStandTheRequestFailsAlone) {
  start();
  GenerateRequest narrow = request_of("narrow", 8);
  narrow.sampling.allowed_tokens = {'a'};
  EXPECT_EQ(ask(narrow).text, "aaaaaaaa");
  narrow.decode.bad_words = {{'a', 'a'}};
  control->forward_ms = 1;
  auto other = submit(request_of("other", 64));
  const Answer answer = ask(narrow);
  EXPECT_EQ(answer.last.finish, FinishReason::kError);
  EXPECT_EQ(answer.last.error_code, static_cast<int>(ErrorCode::kInvalidRequest));
  EXPECT_NE(answer.last.error_message.find("no token may stand"), std::string::npos);
  EXPECT_NE(read_all(std::move(other))[0].last.finish, FinishReason::kError);
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; }));
}

TEST_F(EngineTest, AFailedDeviceEndsWhatWasAcceptedAndTakesNothingMore) {
  engine = std::make_unique<Engine>(std::make_unique<FakeDenoiser>(control), EngineSettings{},
                                    CacheSettings{});
  std::atomic<int> num_told{0};
  engine->start([&] { ++num_told; });
  control->forward_ms = 1;
  control->end_one_in = 0;
  std::vector<ResponseStream> streams;
  for (int i = 0; i < 3; ++i) streams.push_back(submit(request_of("running", 256)));
  EXPECT_TRUE(eventually([&] { return control->num_forwards > 2; }));
  control->device_failed = true;
  for (ResponseStream& stream : streams) {
    const Answer answer = read_all(std::move(stream))[0];
    EXPECT_EQ(answer.last.error_code, static_cast<int>(ErrorCode::kDeviceFailed));
  }
  EXPECT_TRUE(eventually([&] { return num_told == 1; }));
  EXPECT_TRUE(engine->has_failed());
  try {
    submit(request_of("late"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDeviceFailed);
  }
  engine->stop(10s);
  EXPECT_EQ(num_told, 1);
}

TEST_F(EngineTest, ADeviceThatFailsEverythingIsNotReadyUntilItWorksAgain) {
  EngineSettings settings;
  settings.device_check_ms = 100000;  // one check, and no second
  start(settings);
  control->fail_forwards = 4;  // three requests, and the check that they cause
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(engine->is_ready());
    EXPECT_EQ(ask(request_of("failing")).last.finish, FinishReason::kError);
  }
  EXPECT_TRUE(eventually([&] { return !engine->is_ready(); }));
  EXPECT_FALSE(engine->has_failed());
  EXPECT_NE(ask(request_of("works")).last.finish, FinishReason::kError);
  EXPECT_TRUE(eventually([&] { return engine->is_ready(); }));
}

TEST_F(EngineTest, RequestsThatFailAgainAndAgainDoNotMakeADeviceThatWorksUnready) {
  start();
  control->poison = '!';
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(ask(request_of("bad!")).last.finish, FinishReason::kError);
    EXPECT_TRUE(engine->is_ready());
  }
  EXPECT_FALSE(engine->has_failed());
}

TEST_F(EngineTest, DeadlineEndsARequestWithAnError) {
  start();
  control->forward_ms = 5;
  control->end_one_in = 0;
  GenerateRequest request = request_of("late", 256);
  request.deadline = std::chrono::steady_clock::now() + 40ms;
  const Answer answer = ask(std::move(request));
  EXPECT_EQ(answer.last.finish, FinishReason::kError);
  EXPECT_EQ(answer.last.error_code, static_cast<int>(ErrorCode::kDeadlineExceeded));
}

TEST_F(EngineTest, DrainFinishesWhatRunsAndRefusesTheRest) {
  start();
  control->forward_ms = 2;
  auto stream = submit(request_of("running"));
  engine->begin_drain();
  try {
    submit(request_of("late"));
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kDraining);
  }
  engine->stop(5s);
  EXPECT_NE(read_all(std::move(stream))[0].last.finish, FinishReason::kError);
}

TEST_F(EngineTest, DrainThatTakesTooLongEndsWithAnErrorUpdate) {
  start();
  control->forward_ms = 10;
  control->end_one_in = 0;
  auto stream = submit(request_of("endless", 1024));
  engine->stop(30ms);
  const Answer answer = read_all(std::move(stream))[0];
  EXPECT_EQ(answer.last.finish, FinishReason::kError);
  EXPECT_EQ(answer.last.error_code, static_cast<int>(ErrorCode::kDraining));
  EXPECT_EQ(control->num_open_slabs, 0);
}

TEST_F(EngineTest, TheRowBudgetHoldsAndNobodyStarves) {
  EngineSettings settings;
  settings.max_rows_per_forward = 100;
  settings.max_age_ms = 20;
  start(settings);
  control->end_one_in = 0;
  control->forward_ms = 1;
  std::vector<ResponseStream> streams;
  for (int i = 0; i < 6; ++i) {
    GenerateRequest request = request_of("row" + std::to_string(i), 40);
    if (i % 2 == 0) request.decode.intra_cache = IntraCache::kDual;
    streams.push_back(submit(std::move(request)));
  }
  for (auto& stream : streams) {
    EXPECT_EQ(read_all(std::move(stream))[0].last.finish, FinishReason::kLength);
  }
  EXPECT_LE(control->max_rows_seen, 100);
}

TEST_F(EngineTest, WhereBlocksGoAloneNoForwardIsMixedAndNobodyStarves) {
  EngineSettings settings;
  settings.max_rows_per_forward = 100;
  control->end_one_in = 0;
  const auto ask_all = [&] {
    start(settings);
    control->forward_ms = 1;
    std::vector<ResponseStream> streams;
    for (int i = 0; i < 9; ++i) {
      GenerateRequest request = request_of("blocks" + std::to_string(i), 40);
      if (i % 3 != 0) request.decode.intra_cache = IntraCache::kDual;  // others: never in a block
      streams.push_back(submit(std::move(request)));
      std::this_thread::sleep_for(3ms);  // out of step
    }
    std::vector<std::string> texts;
    for (auto& stream : streams) texts.push_back(read_all(std::move(stream))[0].text);
    return texts;
  };
  const auto mixed = ask_all();
  control->block_rows = 8;
  EXPECT_EQ(ask_all(), mixed);
  EXPECT_EQ(control->num_mixed, 0);
  EXPECT_LE(control->max_rows_seen, 100);
}

/// Nobody waits for all choices of another's request, nor do these wait for ever.
TEST(Scheduler, ARequestOfManyCanvasesTakesTurnsWithOthers) {
  EngineSettings settings;
  settings.max_running = 2;
  Scheduler scheduler(settings);
  const auto now = Sequence::Clock::now();
  const auto enqueue = [&](const std::string& name, size_t num_canvases, int age_ms) {
    const auto stream = std::make_shared<ResponseStream::Shared>(num_canvases, 16);
    for (size_t i = 0; i < num_canvases; ++i) {
      auto sequence = std::make_unique<Sequence>();
      sequence->request.id = name;
      sequence->stream = stream;
      sequence->submitted = now - std::chrono::milliseconds(age_ms);
      scheduler.enqueue(std::move(sequence));
    }
  };
  std::string order;
  const auto admit = [&] {
    scheduler.admit(
        now, [](const Sequence&) { return false; },
        [&](Sequence& sequence) {
          order += sequence.request.id;
          sequence.admitted = now;
          return Placement::kPlaced;
        });
  };
  const auto finish = [&](const std::string& name) {
    bool is_found = false;
    scheduler.take_if([&](const Sequence& sequence) {
      return sequence.admitted != Sequence::Clock::time_point{} && sequence.request.id == name &&
             !std::exchange(is_found, true);
    });
  };
  // What waits for long gives no turn: the others would wait until they are as old.
  const int aged = settings.max_age_ms;
  enqueue("A", 8, aged);
  enqueue("b", 1, aged);
  admit();
  EXPECT_EQ(order, "Ab");
  enqueue("c", 1, 0);
  enqueue("d", 1, 0);
  for (const char* next : {"b", "A", "c"}) {
    finish(next);
    admit();
  }
  EXPECT_EQ(order, "AbcAd");
}

TEST_F(EngineTest, CanvasSnapshotsFillUp) {
  start();
  control->end_one_in = 0;
  GenerateRequest request = request_of("show", 16);
  request.wants_canvas = true;
  auto stream = submit(std::move(request));
  int masked_before = 17, num_updates = 0;
  while (auto update = stream.next()) {
    ASSERT_EQ(update->canvas.size(), 16u);
    const auto masked = std::count(update->canvas.begin(), update->canvas.end(), -1);
    EXPECT_LT(masked, masked_before);
    masked_before = static_cast<int>(masked);
    ++num_updates;
  }
  EXPECT_EQ(masked_before, 0);
  EXPECT_EQ(num_updates, 16);
}

}  // namespace
}  // namespace bicached
