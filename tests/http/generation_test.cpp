#include "http/server_fixture.h"

namespace bicached {
namespace {

class GenerationTest : public ServerTest {
 protected:
  static constexpr const char* kChat = "/v1/chat/completions";
  static constexpr const char* kText = "/v1/completions";
};

TEST_F(GenerationTest, ChatAnswersACompleteObject) {
  start();
  const nlohmann::json answer = post(kChat, chat_body()).json();
  EXPECT_EQ(answer.at("object"), "chat.completion");
  EXPECT_EQ(answer.at("model"), "demo");
  EXPECT_TRUE(answer.at("system_fingerprint").is_string());
  const nlohmann::json& choice = answer.at("choices").at(0);
  EXPECT_EQ(choice.at("index"), 0);
  EXPECT_EQ(choice.at("message").at("role"), "assistant");
  EXPECT_TRUE(choice.at("message").at("refusal").is_null());
  EXPECT_TRUE(choice.at("logprobs").is_null());
  const nlohmann::json& usage = answer.at("usage");
  EXPECT_EQ(usage.at("prompt_tokens"), std::string("user:hello\nassistant:").size());
  EXPECT_EQ(usage.at("completion_tokens"), choice["message"]["content"].get<std::string>().size());
  EXPECT_EQ(usage.at("prompt_tokens_details").at("cached_tokens"), 0);
  const nlohmann::json& diffusion = answer.at("diffusion");
  EXPECT_GT(diffusion.at("forwards"), 0);
  EXPECT_EQ(diffusion.at("cache"), "miss");
  for (const char* name : {"refreshes", "tokens_per_forward", "prefix_len", "depth"}) {
    EXPECT_TRUE(diffusion.at(name).is_number()) << name;
  }
}

TEST_F(GenerationTest, TheFinishReasonTellsEndFromLength) {
  control->end_one_in = 0;
  start();
  nlohmann::json body = chat_body();
  body["max_tokens"] = 7;
  const nlohmann::json full = post(kChat, body).json();
  EXPECT_EQ(full["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(full["usage"]["completion_tokens"], 7);
  control->end_one_in = 1;
  const nlohmann::json ended = post(kChat, body).json();
  EXPECT_EQ(ended["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(ended["usage"]["completion_tokens"], 0);
}

TEST_F(GenerationTest, AStreamGivesThePlainText) {
  start();
  for (const char* question : {"a", "bb", "hello", "what is it?"}) {
    const nlohmann::json plain = post(kChat, chat_body(question)).json();
    nlohmann::json body = chat_body(question);
    body["stream_options"]["include_usage"] = true;
    const Events events = stream(kChat, body);
    ASSERT_GE(events.data.size(), 3u);
    EXPECT_TRUE(events.done);
    EXPECT_EQ(plain["choices"][0]["message"]["content"], events.text());
    EXPECT_EQ(events.finish_reason(), plain["choices"][0]["finish_reason"]);
    EXPECT_EQ(events.data.front()["choices"][0]["delta"]["role"], "assistant");
    EXPECT_EQ(events.data.front()["object"], "chat.completion.chunk");
    const nlohmann::json& last = events.data[events.data.size() - 2];
    EXPECT_TRUE(last["choices"][0]["delta"].empty());
    EXPECT_TRUE(last["usage"].is_null());
    EXPECT_TRUE(events.data.back()["choices"].empty());
    EXPECT_EQ(events.data.back()["usage"], plain["usage"]);
    EXPECT_EQ(events.data.back()["diffusion"], plain["diffusion"]);
  }
}

TEST_F(GenerationTest, StopStringsCutPlainAndStreamedAlike) {
  control->end_one_in = 0;
  start();
  const std::string whole = post(kChat, chat_body()).json()["choices"][0]["message"]["content"];
  ASSERT_EQ(whole.size(), 32u);
  for (size_t at : {0u, 5u, 17u, 29u}) {
    nlohmann::json body = chat_body();
    body["stop"] = {"never there", whole.substr(at, 3)};
    body["logprobs"] = true;
    const std::string expected = whole.substr(0, whole.find(whole.substr(at, 3)));
    const nlohmann::json plain = post(kChat, body).json();
    EXPECT_EQ(plain["choices"][0]["message"]["content"], expected);
    EXPECT_EQ(plain["choices"][0]["finish_reason"], "stop");
    EXPECT_EQ(plain["choices"][0]["logprobs"]["content"].size(), expected.size());
    const Events events = stream(kChat, body);
    EXPECT_EQ(events.text(), expected);
    EXPECT_EQ(events.finish_reason(), "stop");
  }
}

TEST_F(GenerationTest, AStopStringEndsTheWork) {
  control->end_one_in = 0;
  control->forward_ms = 2;
  start();
  const std::string whole = post(kChat, chat_body()).json()["choices"][0]["message"]["content"];
  nlohmann::json body = chat_body();
  body["max_tokens"] = 32;
  body["stop"] = whole.substr(0, 2);
  const nlohmann::json stopped = post(kChat, body).json();
  EXPECT_LT(stopped["diffusion"]["forwards"], 32);
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; }));
}

TEST_F(GenerationTest, ManyChoicesEachTheirOwn) {
  control->end_one_in = 0;
  start();
  nlohmann::json body = chat_body();
  body["n"] = 3;
  body["temperature"] = 1;
  body["seed"] = 5;
  const nlohmann::json plain = post(kChat, body).json();
  ASSERT_EQ(plain["choices"].size(), 3u);
  EXPECT_NE(plain["choices"][0]["message"]["content"], plain["choices"][1]["message"]["content"]);
  EXPECT_EQ(plain["usage"]["completion_tokens"], 96);
  EXPECT_EQ(plain["usage"]["prompt_tokens"], 21);
  const Events events = stream(kChat, body);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(events.text(i), plain["choices"][static_cast<size_t>(i)]["message"]["content"]);
    EXPECT_EQ(events.finish_reason(i), "length");
  }
  body["n"] = 1;
  body["seed"] = 7;
  EXPECT_EQ(post(kChat, body).json()["choices"][0]["message"]["content"],
            plain["choices"][2]["message"]["content"]);
}

TEST_F(GenerationTest, ChatLogprobsFollowTheText) {
  start();
  nlohmann::json body = chat_body();
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  const nlohmann::json choice = post(kChat, body).json()["choices"][0];
  std::string joined;
  for (const nlohmann::json& token : choice["logprobs"]["content"]) {
    joined += token["token"].get<std::string>();
    EXPECT_EQ(token["bytes"].size(), 1u);
    EXPECT_LE(token["logprob"], 0);
    EXPECT_EQ(token["top_logprobs"].size(), 2u);
  }
  EXPECT_EQ(joined, choice["message"]["content"]);
  const Events events = stream(kChat, body);
  nlohmann::json streamed = nlohmann::json::array();
  for (const nlohmann::json& chunk : events.data) {
    const nlohmann::json& logprobs = chunk["choices"][0]["logprobs"];
    if (logprobs.is_null()) continue;
    for (const nlohmann::json& token : logprobs["content"]) streamed.push_back(token);
  }
  EXPECT_EQ(streamed, choice["logprobs"]["content"]);
}

TEST_F(GenerationTest, LogprobsOfAnEmptyTextAreEmptyInAStreamToo) {
  start();
  for (const char* path : {kChat, kText}) {
    nlohmann::json body = path == kText ? nlohmann::json{{"prompt", "ab"}} : chat_body();
    body["logprobs"] = path == kText ? nlohmann::json(1) : nlohmann::json(true);
    body["stop"] = nlohmann::json::array();
    for (char letter = 'a'; letter <= 'z'; ++letter) body["stop"].push_back(std::string(1, letter));
    const nlohmann::json plain = post(path, body).json()["choices"][0];
    nlohmann::json streamed = nlohmann::json::array();
    for (const nlohmann::json& chunk : stream(path, body).data) {
      const nlohmann::json& logprobs = chunk["choices"][0]["logprobs"];
      if (!logprobs.is_null()) streamed.push_back(logprobs);
    }
    EXPECT_EQ(streamed, nlohmann::json::array({plain["logprobs"]})) << path;
  }
}

TEST_F(GenerationTest, TextLogprobsHaveOffsets) {
  start();
  nlohmann::json body = text_body("pr\u00f6mpt");
  body["logprobs"] = 1;
  const nlohmann::json choice = post(kText, body).json()["choices"][0];
  const nlohmann::json& logprobs = choice["logprobs"];
  const std::string text = choice["text"];
  const size_t num_tokens = text.size();
  ASSERT_EQ(logprobs["tokens"].size(), num_tokens);
  EXPECT_EQ(logprobs["token_logprobs"].size(), num_tokens);
  EXPECT_EQ(logprobs["top_logprobs"].size(), num_tokens);
  for (size_t i = 0; i < num_tokens; ++i) EXPECT_EQ(logprobs["text_offset"][i], i);
}

TEST_F(GenerationTest, AnEchoWithLogprobsScoresThePrompt) {
  settings.engine.max_queued = 3;  // several rounds
  start();
  nlohmann::json body = text_body("pr\u00f6mpt <end>!");
  body["logprobs"] = 2;
  body["echo"] = true;
  body["max_tokens"] = 4;
  body["n"] = 2;
  body["seed"] = 1;
  const nlohmann::json answer = post(kText, body).json();
  const int64_t num_given = answer["usage"]["prompt_tokens"];
  EXPECT_EQ(num_given, 10);
  for (const nlohmann::json& choice : answer["choices"]) {
    const nlohmann::json& logprobs = choice["logprobs"];
    const std::string text = choice["text"];
    ASSERT_GE(logprobs["tokens"].size(), static_cast<size_t>(num_given));
    const std::vector<std::string> given{"p", "r", "\ufffd", "\ufffd", "m",
                                         "p", "t", " ",      "<end>",  "!"};
    for (size_t i = 0; i < given.size(); ++i) {
      EXPECT_EQ(logprobs["tokens"][i], given[i]);
      EXPECT_LT(logprobs["token_logprobs"][i], 0);
      EXPECT_EQ(logprobs["top_logprobs"][i].size(), 2u);
    }
    EXPECT_EQ(logprobs["text_offset"][8], 7) << "characters; an end token has no text";
    EXPECT_EQ(logprobs["text_offset"][9], 7);
    EXPECT_EQ(logprobs["text_offset"][10], 8);
    // An end token among what was generated is there, too.
    const size_t generated = text.size() - std::string("pr\u00f6mpt !").size();
    const bool ended = choice["finish_reason"] == "stop";
    EXPECT_EQ(logprobs["tokens"].size(), given.size() + generated + (ended ? 1 : 0));
    if (ended) {
      EXPECT_EQ(logprobs["tokens"].back(), "");
    }
  }
  body["n"] = 1;
  const nlohmann::json plain = post(kText, body).json()["choices"][0];
  nlohmann::json joined = {{"tokens", nlohmann::json::array()},
                           {"text_offset", nlohmann::json::array()}};
  const Events events = stream(kText, body);
  for (const nlohmann::json& chunk : events.data) {
    const nlohmann::json& logprobs = chunk["choices"][0]["logprobs"];
    if (logprobs.is_null()) continue;
    for (auto& [name, list] : joined.items()) {
      for (const nlohmann::json& one : logprobs[name]) list.push_back(one);
    }
  }
  EXPECT_EQ(events.text(), plain["text"]);
  EXPECT_EQ(joined["tokens"], plain["logprobs"]["tokens"]);
  EXPECT_EQ(joined["text_offset"], plain["logprobs"]["text_offset"]);
  body["max_tokens"] = 0;
  EXPECT_EQ(post(kText, body).json()["choices"][0]["logprobs"]["tokens"].size(), 10u);
}

TEST_F(GenerationTest, WhereNoTokenMayStandTheRequestIsRefused) {
  start();
  nlohmann::json body = chat_body();
  body["allowed_token_ids"] = {97};
  body["bad_words"] = {"aa"};
  body["max_tokens"] = 4;
  const Response plain = post(kChat, body);
  EXPECT_EQ(plain.status, 400);
  EXPECT_NE(plain.body.find("no token may stand at position"), std::string::npos);
  const Events events = stream(kChat, body);
  EXPECT_EQ(events.data.back().at("error").at("type"), "invalid_request_error");
}

TEST_F(GenerationTest, RawTextInEveryForm) {
  start();
  const nlohmann::json one = post(kText, text_body("ab")).json();
  EXPECT_EQ(one.at("object"), "text_completion");
  const std::string text = one["choices"][0]["text"];
  nlohmann::json body = text_body();
  body["prompt"] = {"ab", "cd"};
  const nlohmann::json two = post(kText, body).json();
  ASSERT_EQ(two["choices"].size(), 2u);
  EXPECT_EQ(two["choices"][0]["text"], text);
  EXPECT_NE(two["choices"][1]["text"], text);
  body["prompt"] = {97, 98};
  EXPECT_EQ(post(kText, body).json()["choices"][0]["text"], text);
  body["prompt"] = nlohmann::json::array({{99}, {97, 98}});
  EXPECT_EQ(post(kText, body).json()["choices"][1]["text"], text);
  body["prompt"] = "ab";
  body["echo"] = true;
  EXPECT_EQ(post(kText, body).json()["choices"][0]["text"], "ab" + text);
  EXPECT_EQ(stream(kText, body).text(), "ab" + text);
  body["echo"] = false;
  body["suffix"] = "z";
  EXPECT_NE(post(kText, body).json()["choices"][0]["text"], text);
}

TEST_F(GenerationTest, DenoiseEventsShowTheCanvas) {
  control->end_one_in = 0;
  start();
  nlohmann::json body = chat_body();
  body["diffusion_stream"] = true;
  const Events events = stream(kChat, body);
  ASSERT_GE(events.denoise.size(), 8u);
  EXPECT_TRUE(events.done);
  const nlohmann::json& last = events.denoise.back();
  EXPECT_EQ(last["first_position"], 21);
  ASSERT_EQ(last["masked"].size(), 32u);
  std::string text;
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(last["masked"][i], false);
    text += last["tokens"][i].get<std::string>();
  }
  EXPECT_EQ(text, events.text());
  EXPECT_TRUE(events.denoise.front()["tokens"][31].is_null());
}

TEST_F(GenerationTest, TheSeedDecides) {
  start();
  nlohmann::json body = chat_body();
  body["temperature"] = 1;
  body["seed"] = 3;
  const auto text = [&] {
    return post(kChat, body).json()["choices"][0]["message"]["content"].get<std::string>();
  };
  const std::string first = text();
  EXPECT_EQ(text(), first);
  body["seed"] = 4;
  EXPECT_NE(text(), first);
}

TEST_F(GenerationTest, AFailureInTheModelIsAnErrorWithoutItsWords) {
  control->poison = 'Q';
  start();
  const Response plain = post(kChat, chat_body("Q"));
  EXPECT_EQ(plain.status, 500);
  EXPECT_EQ(plain.error_code(), "internal_error");
  EXPECT_EQ(plain.body.find("poison"), std::string::npos);
  const Events events = stream(kChat, chat_body("Q"));
  EXPECT_FALSE(events.done);
  EXPECT_EQ(events.data.back().at("error").at("code"), "internal_error");
  EXPECT_EQ(events.finish_reason(), "");
  EXPECT_EQ(post(kChat, chat_body("fine")).status, 200);
}

TEST_F(GenerationTest, TheDeadlineEndsARequest) {
  control->forward_ms = 20;
  control->end_one_in = 0;
  settings.server.request_timeout_ms = 100;
  start();
  const Response plain = post(kChat, chat_body());
  EXPECT_EQ(plain.status, 504);
  EXPECT_EQ(plain.error_code(), "deadline_exceeded");
  const Events events = stream(kChat, chat_body());
  EXPECT_EQ(events.data.back().at("error").at("code"), "deadline_exceeded");
  EXPECT_FALSE(events.done);
}

TEST_F(GenerationTest, PingsKeepAStreamOpen) {
  control->forward_ms = 300;
  settings.server.ping_interval_ms = 100;
  start();
  nlohmann::json body = chat_body();
  body["stream"] = true;
  body["max_tokens"] = 1;
  EXPECT_NE(post(kChat, body).body.find("\n: ping\n"), std::string::npos);
}

TEST_F(GenerationTest, AClientThatLeavesCancelsItsWork) {
  control->forward_ms = 5;
  control->end_one_in = 0;
  start();
  for (const bool streamed : {true, false}) {
    nlohmann::json body = chat_body();
    body["max_tokens"] = 1000;
    body["stream"] = streamed;
    RawClient client(port);
    client.send(make_request("POST", kChat, body.dump()));
    EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 1; }));
    // Who closes right behind the request may be one that still reads (nc -N).
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    client.close();
    EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; })) << streamed;
  }
  EXPECT_EQ(engine->stats().cancelled, 2);
  EXPECT_NE(get("/metrics").body.find("status=\"499\"} 1\n"), std::string::npos);
}

TEST_F(GenerationTest, ExpectContinueIsAnswered) {
  start();
  const std::string body = chat_body().dump();
  RawClient client(port);
  client.send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: "
      "100-continue\r\n"
      "Content-Length: " +
      std::to_string(body.size()) + "\r\n\r\n");
  const std::string go_on = client.read_until(
      [](const std::string& all) { return all.find("\r\n\r\n") != std::string::npos; });
  EXPECT_TRUE(go_on.starts_with("HTTP/1.1 100 ")) << go_on;
  client.send(body);
  EXPECT_EQ(parse_response(client.read_all().substr(go_on.size())).status, 200);
}

}  // namespace
}  // namespace bicached
