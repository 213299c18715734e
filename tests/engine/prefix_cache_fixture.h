#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "bicached/engine.h"
#include "engine/fake_denoiser.h"

namespace bicached {

/// The prefix cache through the engine, with a model that is none.
class PrefixCacheTest : public testing::Test {
 protected:
  PrefixCacheTest() {
    cache.policy = "fixed";
    cache.depth = 2;
    settings.integrity_checks = true;
  }
  ~PrefixCacheTest() override {
    engine.reset();
    EXPECT_EQ(control->num_open_slabs, 0);
  }

  void start(int64_t capacity_tokens = 1 << 20) {
    engine = std::make_unique<Engine>(std::make_unique<FakeDenoiser>(control, capacity_tokens),
                                      settings, cache);
    engine->start();
  }

  static GenerateRequest request_of(const std::string& prefix, const std::string& question) {
    GenerateRequest request;
    const std::string prompt = prefix + question;
    request.prompt_ids.assign(prompt.begin(), prompt.end());
    request.prefix_boundaries = {static_cast<int>(prefix.size())};
    request.gen_length = 16;
    request.decode.block_length = 8;
    request.decode.steps = 16;
    return request;
  }

  GenerationUpdate ask(GenerateRequest request, std::string* text = nullptr) {
    const GenerationUpdate last = try_to_ask(std::move(request), text);
    EXPECT_NE(last.finish, FinishReason::kError) << last.error_message;
    return last;
  }
  GenerationUpdate try_to_ask(GenerateRequest request, std::string* text = nullptr) {
    std::vector<GenerateRequest> job;
    job.push_back(std::move(request));
    ResponseStream stream = engine->submit(std::move(job));
    GenerationUpdate last;
    while (auto update = stream.next()) {
      for (const DecidedToken& token : update->tokens) {
        if (text) *text += static_cast<char>(token.token);
      }
      last = *update;
    }
    return last;
  }
  std::string cache_state(GenerateRequest request) { return ask(std::move(request)).stats.cache; }

  static std::string prefix_of(int i, int length = 40) {
    std::string text = std::to_string(i);
    text.resize(static_cast<size_t>(length), 'p');
    return text;
  }

  EngineSettings settings;
  CacheSettings cache;
  std::shared_ptr<FakeDenoiser::Control> control = std::make_shared<FakeDenoiser::Control>();
  std::unique_ptr<Engine> engine;
};

}  // namespace bicached
