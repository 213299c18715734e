#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/log.h"
#include "engine/fake_denoiser.h"
#include "http/api_keys.h"
#include "http/errors.h"
#include "http/fake_text.h"
#include "http/job.h"

namespace bicached {
namespace {

struct Failure {
  ErrorCode code;
  std::string param;
  std::string message;
};
template <typename Parse>
Failure failure(Parse parse) {
  try {
    parse();
  } catch (const Error& error) {
    return {error.code(), error.param(), error.what()};
  }
  return {ErrorCode::kInternal, "", "nothing was thrown"};
}

class CodecTest : public testing::Test {
 protected:
  CodecTest()
      : engine(std::make_unique<FakeDenoiser>(std::make_shared<FakeDenoiser::Control>()),
               EngineSettings{}, CacheSettings{}) {
    backend.engine = &engine;
    backend.tokenizer = &tokenizer;
    backend.chat_template = &chat_template;
    backend.defaults.max_tokens = 64;
    backend.defaults.steps = 0;
    backend.defaults.block_length = 32;
    backend.defaults.algorithm = "threshold";
    backend.defaults.params["threshold"] = 0.8;
    backend.model_id = "demo";
  }

  Job chat(const std::string& fields) {
    const std::string messages = R"("messages":[{"role":"user","content":"hi"}])";
    return parse_chat_request("{" + messages + (fields.empty() ? "" : ",") + fields + "}", context);
  }
  Job text(const std::string& fields) { return parse_text_request("{" + fields + "}", context); }

  Engine engine;
  FakeTokenizer tokenizer;
  FakeTemplate chat_template;
  Backend backend;
  NameLog unknown_fields;
  std::vector<std::string> aliases = {"other"};
  CodecContext context{backend, aliases, 64, unknown_fields};
};

TEST_F(CodecTest, FillsInTheDefaults) {
  const Job job = chat("");
  ASSERT_EQ(job.canvases.size(), 1u);
  const GenerateRequest& request = job.canvases[0];
  EXPECT_EQ(tokenizer.decode(request.prompt_ids, false), "user:hi\nassistant:");
  EXPECT_EQ(request.gen_length, 64);
  EXPECT_EQ(request.decode.steps, 64);
  EXPECT_EQ(request.decode.block_length, 32);
  EXPECT_EQ(request.decode.algorithm, "threshold");
  EXPECT_FLOAT_EQ(request.decode.params.at("threshold"), 0.8);
  EXPECT_EQ(request.sampling.num_top_logprobs, -1);
  EXPECT_EQ(request.cache.policy, "");  // the server's
  EXPECT_FALSE(job.stream);
  EXPECT_EQ(job.model, "other") << "the name that the operator gave it";
  aliases = {"*"};
  EXPECT_EQ(chat("").model, "demo");
}

TEST_F(CodecTest, IntraCacheIsTheCachePolicysUnlessNamed) {
  const auto read = [&](const char* name) {
    const std::string field = R"("intra_cache":")" + std::string(name) + "\"";
    return chat(field.c_str()).canvases[0].decode.intra_cache;
  };
  EXPECT_EQ(read("auto"), std::nullopt);
  EXPECT_EQ(read("none"), IntraCache::kNone);
  EXPECT_EQ(read("prefix"), IntraCache::kPrefix);
  EXPECT_EQ(read("adaptive"), IntraCache::kAdaptive);
}

TEST_F(CodecTest, ReadsEveryField) {
  const Job job = chat(
      R"("model":"other","max_completion_tokens":40,"max_tokens":50,"temperature":0.5,
      "top_p":0.9,"top_k":7,"seed":-3,"stop":["a","b"],"n":3,"stream":true,
      "stream_options":{"include_usage":true},"logprobs":true,"top_logprobs":5,
      "logit_bias":{"97":-100},"ignore_eos":true,"steps":20,"block_length":8,
      "algorithm":"low_confidence","threshold":0.7,"factor":2,"cfg_scale":1.5,"schedule":"timesteps",
      "logits_eos_inf":true,"confidence_eos_eot_inf":true,"eos_early_stop":false,
      "intra_cache":"dual","cache":{"policy":"off","refresh_interval":4,"prefix_len":3,"salt":"s"},
      "diffusion_stream":true,"user":"u","metadata":{},"store":false,"service_tier":"auto")");
  ASSERT_EQ(job.canvases.size(), 3u);
  const GenerateRequest& request = job.canvases[2];
  EXPECT_EQ(request.gen_length, 40);
  EXPECT_FLOAT_EQ(request.sampling.temperature, 0.5f);
  EXPECT_FLOAT_EQ(request.sampling.top_p, 0.9f);
  EXPECT_EQ(request.sampling.top_k, 7);
  EXPECT_EQ(request.sampling.seed, static_cast<uint64_t>(-1));
  EXPECT_EQ(request.sampling.num_top_logprobs, 5);
  ASSERT_EQ(request.sampling.logit_bias.size(), 1u);
  EXPECT_EQ(request.sampling.logit_bias[0].first, 97);
  EXPECT_TRUE(request.decode.ignore_eos);
  EXPECT_EQ(request.decode.steps, 20);
  EXPECT_EQ(request.decode.block_length, 8);
  EXPECT_EQ(request.decode.algorithm, "low_confidence");
  EXPECT_FLOAT_EQ(request.decode.params.at("factor"), 2.0);
  EXPECT_FLOAT_EQ(request.decode.cfg_scale, 1.5f);
  EXPECT_EQ(request.decode.schedule, Schedule::kTimesteps);
  EXPECT_TRUE(request.decode.logits_eos_inf);
  EXPECT_TRUE(request.decode.confidence_eos_eot_inf);
  EXPECT_FALSE(request.decode.eos_early_stop);
  EXPECT_EQ(request.decode.intra_cache, IntraCache::kDual);
  EXPECT_EQ(request.cache.refresh_interval, 4);
  EXPECT_EQ(request.cache.prefix_len, 3);
  EXPECT_EQ(request.cache.salt, "s");
  EXPECT_TRUE(request.wants_canvas);
  EXPECT_TRUE(job.include_usage);
  EXPECT_EQ(job.stops, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(job.prompt_tokens, 18);
}

TEST_F(CodecTest, AcceptsWhatAsksForNothing) {
  EXPECT_NO_THROW(chat(R"("n":1,"tools":[],"tool_choice":"none","response_format":{"type":"text"},
      "frequency_penalty":0,"presence_penalty":0.0,"stop":null,"logprobs":false,"unheard_of":1,
      "logit_bias":{},"temperature":null)"));
}

TEST_F(CodecTest, AChatThatComesToCompletionsIsToldWhereItGoes) {
  const auto found = failure([&] { text(R"("messages":[{"role":"user","content":"hi"}])"); });
  EXPECT_EQ(found.param, "messages");
  EXPECT_NE(found.message.find("/v1/chat/completions"), std::string::npos) << found.message;
}

TEST_F(CodecTest, FieldsThatChangeNothingAreLoggedOnce) {
  const std::string path = ::testing::TempDir() + "/bicached_codec_test.log";
  std::remove(path.c_str());
  log_setup("info", "text", path);
  for (int i = 0; i < 2; ++i) chat(R"("treshold":0.5,"unheard_of":1,"threshold":0.5)");
  chat(R"("algorithm":"random","threshold":0.5)");
  log_setup("error", "text");
  std::stringstream log;
  log << std::ifstream(path).rdbuf();
  std::remove(path.c_str());
  const auto count = [&](const std::string& line) {
    size_t found = 0;
    for (size_t at = 0; (at = log.str().find(line, at)) != std::string::npos; ++at) ++found;
    return found;
  };
  EXPECT_EQ(count("\"treshold\" is not known and is ignored; did you mean threshold?\n"), 1u);
  EXPECT_EQ(count("\"unheard_of\" is not known and is ignored\n"), 1u);
  EXPECT_EQ(count("\"threshold\" changes nothing: the algorithm random has no such "), 1u);
}

TEST_F(CodecTest, RefusesWhatIsWrongAndNamesIt) {
  struct Case {
    const char* fields;
    ErrorCode code;
    const char* param;
    const char* part_of_message;
  };
  constexpr ErrorCode kBad = ErrorCode::kInvalidRequest;
  constexpr ErrorCode kNo = ErrorCode::kUnsupportedParameter;
  const Case cases[] = {
      {R"("temperature":"hot")", kBad, "temperature", "a number, not string"},
      {R"("temperature":2.5)", kBad, "temperature", "0 to 2"},
      {R"("temperature":-1)", kBad, "temperature", "0 to 2"},
      {R"("top_p":-0.1)", kBad, "top_p", "0 to 1"},
      {R"("top_k":-2)", kBad, "top_k", "-1 to"},
      {R"("top_k":1.5)", kBad, "top_k", "an integer"},
      {R"("seed":18446744073709551615)", kBad, "seed", "at most"},
      {R"("seed":1.5)", kBad, "seed", "an integer"},
      {R"("seed":1180591620717411303424)", kBad, "seed", "64 bits"},
      {R"("max_tokens":-2)", kBad, "max_tokens", "0 or more"},
      {R"("allowed_token_ids":[])", kBad, "allowed_token_ids", "at least one"},
      {R"("allowed_token_ids":[257])", kBad, "allowed_token_ids", "no token to choose"},
      {R"("allowed_token_ids":[97,98],"bad_words":["a","b"])", kBad, "allowed_token_ids",
       "no token"},
      {R"("allowed_token_ids":[256],"ignore_eos":true)", kBad, "allowed_token_ids", "no token"},
      {R"("allowed_token_ids":[256],"logits_eos_inf":true)", kBad, "allowed_token_ids", "no token"},
      {R"("allowed_token_ids":[256],"min_tokens":1)", kBad, "allowed_token_ids", "no token"},
      {R"("allowed_token_ids":[97],"stop_token_ids":[97],"min_tokens":1)", kBad,
       "allowed_token_ids", "no token"},
      {R"("min_tokens":9,"max_tokens":8)", kBad, "min_tokens", "at most max_tokens, 8"},
      {R"("n":0)", kBad, "n", "1 to 128"},
      {R"("n":65)", kBad, "n", "at most 64"},
      {R"("stop":5)", kBad, "stop", "a string"},
      {R"("stream":1)", kBad, "stream", "true or false"},
      {R"("diffusion_stream":true)", kBad, "diffusion_stream", "stream"},
      {R"("logprobs":1)", kBad, "logprobs", "true or false"},
      {R"("top_logprobs":3)", kBad, "top_logprobs", "logprobs"},
      {R"("logprobs":true,"top_logprobs":21)", kBad, "top_logprobs", "0 to 20"},
      {R"("logit_bias":{"x":1})", kBad, "logit_bias", "0 to 257"},
      {R"("logit_bias":{"258":1})", kBad, "logit_bias", "0 to 257"},
      {R"("logit_bias":{"5":101})", kBad, "logit_bias", "-100 to 100"},
      {R"("logit_bias":[])", kBad, "logit_bias", "an object"},
      {R"("steps":0)", kBad, "steps", "1 to"},
      {R"("block_length":0)", kBad, "block_length", "1 to"},
      {R"("algorithm":"magic")", kBad, "algorithm", "low_confidence"},
      {R"("threshold":0)", kBad, "threshold", "at most 1"},
      {R"("cfg_scale":101)", kBad, "cfg_scale", "cfg_scale is 101; allowed is 0 to 100"},
      {R"("schedule":"cosine")", kBad, "schedule", "auto, even, timesteps"},
      {R"("alg_temp":-0.5)", kBad, "alg_temp", "alg_temp is -0.5; allowed is 0 to 100"},
      {R"("eps":0)", kBad, "eps", "more than 0, at most 0.5"},
      {R"("entropy_bound":"a")", kBad, "entropy_bound", "a number, not string"},
      {R"("kl_threshold":0)", kBad, "kl_threshold", "more than 0, at most 100 nats"},
      {R"("factor":101)", kBad, "factor", "factor is 101"},
      {R"("logits_eos_inf":1)", kBad, "logits_eos_inf", "true or false"},
      {R"("confidence_eos_eot_inf":"x")", kBad, "confidence_eos_eot_inf", "true or false"},
      {R"("intra_cache":"triple")", kBad, "intra_cache", "auto, none, prefix, dual, adaptive"},
      {R"("cache":3)", kBad, "cache", "an object"},
      {R"("cache":{"policy":"magic"})", kBad, "cache.policy", "off"},
      {R"("cache":{"depth":3})", kBad, "cache.depth", "no policy is given"},
      {R"("cache":{"policy":"off","depth":3})", kBad, "cache.depth", "the policy given is \"off\""},
      {R"("cache":{"refresh_interval":0})", kBad, "cache.refresh_interval", "1 to"},
      {R"("cache":{"polcy":"off"})", kBad, "cache", "cache.polcy"},
      {R"("model":"gpt-9")", ErrorCode::kModelNotFound, "model", "demo"},
      {R"("model":7)", kBad, "model", "a string"},
      {R"("tool_choice":"required")", kNo, "tool_choice", "none"},
      {R"("response_format":{"type":"json_object"})", kNo, "response_format", "text"},
      {R"("response_format":{"type":7})", kNo, "response_format", "text"},
      {R"("frequency_penalty":2.5)", kBad, "frequency_penalty", "-2 to 2"},
      {R"("presence_penalty":"x")", kBad, "presence_penalty", "a number"},
      {R"("modalities":["audio"])", kNo, "modalities", "text"},
  };
  for (const Case& c : cases) {
    const Failure f = failure([&] { chat(c.fields); });
    EXPECT_EQ(f.code, c.code) << c.fields << ": " << f.message;
    EXPECT_EQ(f.param, c.param) << c.fields;
    EXPECT_NE(f.message.find(c.part_of_message), std::string::npos)
        << c.fields << ": " << f.message;
  }
}

TEST_F(CodecTest, TakesNumbersAndFieldsAsClientsSendThem) {
  const GenerateRequest request =
      chat(R"("max_tokens":16.0,"seed":3.0,"top_k":-1,"top_p":0,"min_p":0.25,"n":1.0,
              "stop":["","a","b","c","d","e"],"stream_options":{"include_usage":true},
              "frequency_penalty":0.5,"presence_penalty":-1,"repetition_penalty":1.2,
              "stop_token_ids":[7],"min_tokens":2)")
          .canvases[0];
  EXPECT_EQ(request.gen_length, 16);
  EXPECT_EQ(request.sampling.seed, 3u);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_EQ(request.sampling.top_p, 0.0f);
  EXPECT_EQ(request.sampling.min_p, 0.25f);
  EXPECT_EQ(request.sampling.frequency_penalty, 0.5f);
  EXPECT_EQ(request.sampling.presence_penalty, -1.0f);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.2f);
  EXPECT_EQ(request.decode.stop_tokens, (std::vector<TokenId>{7}));
  EXPECT_EQ(request.decode.min_tokens, 2);
}

TEST_F(CodecTest, MaxTokensOverTheRoomIsCutToWhatFits) {
  EXPECT_LE(chat(R"("max_tokens":32000)").canvases[0].longest_canvas(), 2048);
  EXPECT_LE(chat(R"("max_tokens":-1)").canvases[0].longest_canvas(), 2048);
}

TEST_F(CodecTest, WhatAsksForNothingIsTaken) {
  EXPECT_EQ(chat(R"("max_tokens":0)").canvases[0].gen_length, 0);
  EXPECT_TRUE(chat(R"("logit_bias":{"of a word":0})").canvases[0].sampling.logit_bias.empty());
  EXPECT_NO_THROW(
      chat(R"("audio":{"voice":"alloy"},"modalities":["text"],"web_search_options":{})"));
  EXPECT_NO_THROW(text(R"("prompt":"a","best_of":0)"));
  EXPECT_NO_THROW(chat(R"("allowed_token_ids":[97,98],"bad_words":["a"],"min_tokens":1)"));
}

TEST_F(CodecTest, TheModelsLeastLengthGivesWayToTheRequests) {
  backend.defaults.min_tokens = 20;
  EXPECT_EQ(chat(R"("max_tokens":8)").canvases[0].decode.min_tokens, 8);
  EXPECT_EQ(chat("").canvases[0].decode.min_tokens, 20);
}

TEST_F(CodecTest, LeaveToThinkIsReadAndNotTaken) {
  const auto read = [&](const std::string& thinking) {
    parse_messages_request(R"({"max_tokens":8,"messages":[{"role":"user","content":"hi"}],)"
                           "\"thinking\":" +
                               thinking + "}",
                           context);
  };
  for (const char* fine : {"null", R"({"type":"disabled"})", R"({"type":"adaptive"})",
                           R"({"type":"enabled","budget_tokens":1024})"}) {
    EXPECT_NO_THROW(read(fine)) << fine;
  }
  const std::pair<const char*, const char*> wrong[] = {
      {"true", "thinking"},
      {"{}", "thinking.type"},
      {R"({"type":"deep"})", "thinking.type"},
      {R"({"type":"enabled"})", "thinking.budget_tokens"},
      {R"({"type":"enabled","budget_tokens":0})", "thinking.budget_tokens"}};
  for (const auto& [thinking, param] : wrong) {
    EXPECT_EQ(failure([&] { read(thinking); }).param, param) << thinking;
  }
}

TEST_F(CodecTest, APromptIsScoredWhereItCanBe) {
  const Job scored = text(R"("prompt":"ab","echo":true,"logprobs":1)");
  EXPECT_TRUE(scored.canvases[0].wants_end);
  EXPECT_FALSE(text(R"("prompt":"ab","echo":true)").canvases[0].wants_end);
  EXPECT_EQ(failure([&] { text(R"("prompt":[97,257],"echo":true,"logprobs":1)"); }).param, "echo")
      << "a mask has no probability";
}

TEST_F(CodecTest, WhatConstrainsTheTextAndIsNotDoneIsRefusedByName) {
  for (const char* field : {"guided_json", "guided_regex", "guided_choice", "guided_grammar",
                            "structured_outputs", "grammar", "regex", "prompt_logprobs"}) {
    const Failure f = failure([&] { chat("\"" + std::string(field) + "\":{\"a\":1}"); });
    EXPECT_EQ(f.code, ErrorCode::kUnsupportedParameter) << field << ": " << f.message;
    EXPECT_EQ(f.param, field);
  }
}

TEST_F(CodecTest, RefusesBadMessages) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({})", "messages"},
      {R"({"messages":[]})", "messages"},
      {R"({"messages":"hi"})", "messages"},
      {R"({"messages":["hi"]})", "messages[0]"},
      {R"({"messages":[{"content":"hi"}]})", "messages[0].role"},
      {R"({"messages":[{"role":"user"}]})", "messages[0].content"},
      {R"({"messages":[{"role":"king","content":"hi"}]})", "messages[0].role"},
      {R"({"messages":[{"role":7,"content":"hi"}]})", "messages[0].role"},
      {R"({"messages":[{"role":"user","content":7}]})", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})",
       "messages[0].content[0].text"},
      {R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]})",
       "messages[0].content[0]"},
      {R"({"messages":[{"role":"assistant","content":"","tool_calls":[{}]}]})",
       "messages[0].tool_calls[0].function"},
  };
  for (const auto& [body, param] : cases) {
    EXPECT_EQ(failure([&] { parse_chat_request(body, context); }).param, param) << body;
  }
}

TEST_F(CodecTest, RefusesBadJson) {
  const std::string deep(100000, '[');
  const std::string cases[] = {"",
                               "{",
                               "nonsense",
                               "[]",
                               "7",
                               "{\"prompt\":\"a\",\"prompt\":\"b\"}",
                               "{\"prompt\":\"\xff\xfe\"}",
                               "{\"prompt\":\"a\"} more",
                               "{\"prompt\":1e999}",
                               "{\"prompt\":" + deep,
                               "{\"prompt\":\"\\ud800\"}"};
  for (const std::string& body : cases) {
    const Failure f = failure([&] { parse_text_request(body, context); });
    EXPECT_EQ(f.code, ErrorCode::kInvalidRequest) << body.substr(0, 50) << ": " << f.message;
  }
}

TEST_F(CodecTest, JoinsTextPartsAndKnowsDevelopers) {
  const Job job = parse_chat_request(
      R"({"messages":[{"role":"developer","content":"be"},{"role":"user",
      "content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]})",
      context);
  EXPECT_EQ(tokenizer.decode(job.canvases[0].prompt_ids, false), "system:be\nuser:ab\nassistant:");
}

TEST_F(CodecTest, SpecialTokensInMessagesStayLetters) {
  const Job job =
      parse_chat_request(R"({"messages":[{"role":"user","content":"<end>"}]})", context);
  for (TokenId id : job.canvases[0].prompt_ids) EXPECT_LT(id, 256);
}

TEST_F(CodecTest, ReadsEveryFormOfPrompt) {
  EXPECT_EQ(text(R"("prompt":"ab")").canvases.size(), 1u);
  EXPECT_EQ(text(R"("prompt":["ab","c"])").canvases.size(), 2u);
  EXPECT_EQ(text(R"("prompt":[97,98])").canvases[0].prompt_ids, (std::vector<TokenId>{97, 98}));
  const Job job = text(R"("prompt":[[97],[98,99]],"n":2)");
  ASSERT_EQ(job.canvases.size(), 4u);
  EXPECT_EQ(job.canvases[1].prompt_ids, (std::vector<TokenId>{97}));
  EXPECT_EQ(job.canvases[2].prompt_ids, (std::vector<TokenId>{98, 99}));
  EXPECT_EQ(job.prompt_tokens, 3);
}

TEST_F(CodecTest, RefusesBadPrompts) {
  const char* cases[] = {R"("prompt":[258])",         R"("prompt":[-1])", R"("prompt":[1.5])",
                         R"("prompt":["a",1])",       R"("prompt":{})",   R"("prompt":[1,"a"])",
                         R"("prompt":[99999999999])", R"("prompt":[])",   R"("prompt":[[]])",
                         R"("prompt":[[97],[]])"};
  for (const char* fields : cases) {
    const Failure f = failure([&] { text(fields); });
    EXPECT_EQ(f.code, ErrorCode::kInvalidRequest) << fields;
    EXPECT_EQ(f.param, "prompt") << fields;
  }
}

TEST_F(CodecTest, InfillingCountsTheSuffix) {
  const Job job = text(R"("prompt":"abc","suffix":"de","max_tokens":5)");
  EXPECT_EQ(job.canvases[0].suffix_ids.size(), 2u);
  EXPECT_EQ(job.prompt_tokens, 5);
}

TEST_F(CodecTest, WithoutMaxTokensTheLengthIsReducedToWhatFits) {
  const std::string prompt(2048 - 10, 'a');
  EXPECT_EQ(text("\"prompt\":\"" + prompt + "\"").canvases[0].gen_length, 10);
  EXPECT_EQ(text("\"prompt\":\"" + prompt + "\",\"max_tokens\":11").canvases[0].gen_length, 10);
  EXPECT_EQ(failure([&] { text("\"prompt\":\"" + std::string(2048, 'a') + "\""); }).code,
            ErrorCode::kContextLengthExceeded);
}

TEST_F(CodecTest, ChoicesHaveSeedsOfTheirOwn) {
  const Job job = chat(R"("n":3,"seed":10)");
  EXPECT_EQ(job.canvases[0].sampling.seed, 10u);
  EXPECT_EQ(job.canvases[2].sampling.seed, 12u);
  EXPECT_NE(chat("").canvases[0].sampling.seed, chat("").canvases[0].sampling.seed);
}

TEST_F(CodecTest, WithoutATemplateChatIsRefused) {
  backend.chat_template = nullptr;
  EXPECT_EQ(failure([&] { chat(""); }).param, "messages");
}

TEST(ErrorTest, ADefectsWordsStayInTheLog) {
  const auto json = error_json(Error(ErrorCode::kInternal, "secret"), "id7");
  EXPECT_EQ(json["error"]["code"], "internal_error");
  EXPECT_EQ(json["error"]["message"].get<std::string>().find("secret"), std::string::npos);
  EXPECT_NE(json["error"]["message"].get<std::string>().find("id7"), std::string::npos);
}

class ApiKeysTest : public testing::Test {
 protected:
  ~ApiKeysTest() override { std::remove(path.c_str()); }
  ApiKeys load(const std::string& text) {
    std::ofstream(path) << text;
    return ApiKeys::load(path, "");
  }
  const std::string path = testing::TempDir() + "bicached_keys_" +
                           testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(ApiKeysTest, OnlyTheKeysOfTheFileMayIn) {
  const ApiKeys keys = load("# people\nalpha-1\n\nbeta-22\r\n");
  EXPECT_NO_THROW(keys.check({"alpha-1"}));
  EXPECT_NO_THROW(keys.check({"wrong", "beta-22"}));
  EXPECT_NE(keys.check({"alpha-1"}).tenant, keys.check({"beta-22"}).tenant);
  EXPECT_THROW(keys.check({}), Error);
  for (const char* wrong : {"", "alpha-2", "alpha-1alpha-1", "alpha-", "# people"}) {
    EXPECT_THROW(keys.check({wrong}), Error) << wrong;
  }
}

TEST_F(ApiKeysTest, ABearerIsNamedInAnyCaseAndWithAnyBlanks) {
  for (const char* header : {"Bearer a", "bearer a", "BEARER  a", "Bearer\ta", "Bearer a "}) {
    EXPECT_EQ(bearer_key(header), "a") << header;
  }
  for (const char* header : {"", "Bearer", "Bearer ", "a", "Basic a", "Bearera"}) {
    EXPECT_EQ(bearer_key(header), "") << header;
  }
}

TEST_F(ApiKeysTest, AFileThatLetsNobodyInIsAnError) {
  EXPECT_THROW(load("# none\n"), Error);
  EXPECT_THROW(load("with space\n"), Error);
  EXPECT_THROW(load("with%41\n"), Error);
  EXPECT_THROW(ApiKeys::load("/no/such/file", ""), Error);
  EXPECT_FALSE(ApiKeys::load("", "").required());
}

TEST_F(ApiKeysTest, MistakesNameTheSetting) {
  const auto error_of = [&](const std::string& keys) {
    return failure([&] { load(keys); }).message;
  };
  EXPECT_EQ(error_of("# nobody\n"), "api_key_file: " + path + ": holds no key");
  EXPECT_TRUE(error_of("good\ntwo words\n").starts_with("api_key_file: " + path + ":2: "));
  EXPECT_TRUE(failure([] {
                ApiKeys::load("", "/no/such/file");
              }).message.starts_with("admin_key_file: /no/such/file: "));
}

}  // namespace
}  // namespace bicached
