// The routes of other APIs: one generation is behind all of them.
#include "http/server_fixture.h"

namespace bicached {
namespace {

using nlohmann::json;

class DialectsTest : public ServerTest {
 protected:
  /// The text that a chat with this question gets.
  std::string chat_text(const std::string& question = "hello") {
    return post("/v1/chat/completions", chat_body(question))
        .json()["choices"][0]["message"]["content"];
  }
  static std::string joined(const Events& events, const char* type, const char* list,
                            const char* field) {
    std::string text;
    for (const json& event : events.data) {
      if (event.value("type", "") != type) continue;
      text += list ? event.at(list).at(field) : event.at(field);
    }
    return text;
  }
};

TEST_F(DialectsTest, AResponseIsTheChatsText) {
  start();
  const json body = {{"input", "hello"}, {"max_output_tokens", 32}};
  const json plain = post("/v1/responses", body).json();
  EXPECT_EQ(plain.at("object"), "response");
  EXPECT_EQ(plain["output"][0]["content"][0]["text"], chat_text());
  const Events events = stream("/v1/responses", body);
  EXPECT_EQ(joined(events, "response.output_text.delta", nullptr, "delta"), chat_text());
  const json& last = events.data.back();
  EXPECT_EQ(last["type"], "response." + plain["status"].get<std::string>());
  EXPECT_EQ(last["response"]["output"][0]["content"], plain["output"][0]["content"]);
  EXPECT_EQ(last["response"]["usage"], plain["usage"]);
  for (size_t i = 0; i < events.data.size(); ++i) EXPECT_EQ(events.data[i]["sequence_number"], i);
}

TEST_F(DialectsTest, AResponseRepeatsWhatItWasAskedInItsTypes) {
  start();
  const json plain = post("/v1/responses", {{"input", "x"},
                                            {"max_output_tokens", 16.0},
                                            {"metadata", {{"a", "b"}}},
                                            {"parallel_tool_calls", false},
                                            {"user", {{"id", 1}}}})
                         .json();
  EXPECT_TRUE(plain["max_output_tokens"].is_number_integer());
  EXPECT_EQ(plain["metadata"]["a"], "b");
  EXPECT_EQ(plain["parallel_tool_calls"], false);
  EXPECT_FALSE(plain.contains("user")) << "some pages send an object, the answer has a string";
  EXPECT_EQ(post("/v1/responses", {{"input", "x"}, {"user", "u"}}).json()["user"], "u");
  EXPECT_EQ(plain["usage"]["input_tokens_details"]["cache_write_tokens"], 0);
  for (const char* field : {"metadata", "parallel_tool_calls", "truncation"}) {
    EXPECT_EQ(post("/v1/responses", {{"input", "x"}, {field, 5}}).error_param(), field);
  }
}

TEST_F(DialectsTest, AResponseKeepsNothing) {
  start();
  for (const char* field : {"previous_response_id", "conversation", "prompt"}) {
    EXPECT_EQ(post("/v1/responses", {{"input", "x"}, {field, "y"}}).error_param(), field);
  }
  EXPECT_EQ(post("/v1/responses", {{"input", "x"}, {"background", true}}).error_param(),
            "background");
  EXPECT_EQ(post("/v1/responses", {{"input", json::array()}}).error_param(), "input");
  EXPECT_EQ(post("/v1/responses", json::object()).error_param(), "input");
}

TEST_F(DialectsTest, AMessageIsTheChatsText) {
  start();
  const json body = {{"max_tokens", 32},
                     {"messages", json::array({{{"role", "user"}, {"content", "hello"}}})}};
  const json plain = post("/v1/messages", body).json();
  EXPECT_EQ(plain["content"][0]["text"], chat_text());
  const Events events = stream("/v1/messages", body);
  EXPECT_EQ(joined(events, "content_block_delta", "delta", "text"), chat_text());
  EXPECT_EQ(events.data.front()["type"], "message_start");
  EXPECT_EQ(events.data.back()["type"], "message_stop");
  const json& delta = events.data[events.data.size() - 2];
  EXPECT_EQ(delta["delta"]["stop_reason"], plain["stop_reason"]);
  EXPECT_EQ(delta["usage"], plain["usage"]);
  const Response wrong = post("/v1/messages", {{"max_tokens", 32}});
  EXPECT_EQ(wrong.json().at("type"), "error");
  EXPECT_EQ(wrong.error_param(), "messages");
  json image = body;
  image["messages"][0]["content"] = json::array({{{"type", "image"}, {"source", json::object()}}});
  EXPECT_EQ(post("/v1/messages", image).error_param(), "messages[0].content[0]");
  const json counted = post("/v1/messages/count_tokens", body).json();
  EXPECT_EQ(counted.at("input_tokens"), plain["usage"]["input_tokens"]);
}

TEST_F(DialectsTest, AFailureEndsEveryKindOfStreamInItsForm) {
  control->poison = 'Q';
  start();
  const json messages = json::array({{{"role", "user"}, {"content", "Q"}}});
  const Events message = stream("/v1/messages", {{"max_tokens", 8}, {"messages", messages}});
  EXPECT_EQ(message.data.back()["type"], "error");
  EXPECT_EQ(message.data.back()["error"]["type"], "server_error");
  const Events response = stream("/v1/responses", {{"input", "Q"}});
  EXPECT_EQ(response.data.back()["type"], "response.failed");
  EXPECT_EQ(response.data.back()["response"]["error"]["code"], "server_error");
  const Events infill = stream("/infill", {{"input_prefix", "Q"}, {"input_suffix", ""}});
  EXPECT_EQ(infill.data.back()["error"]["code"], "internal_error");
}

TEST_F(DialectsTest, InfillingsAreTheTextBetween) {
  start();
  const json raw = {{"prompt", "ab"}, {"suffix", "cd"}, {"max_tokens", 16}};
  const std::string text = post("/v1/completions", raw).json()["choices"][0]["text"];
  const json fim = post("/v1/fim/completions", raw).json();
  EXPECT_EQ(fim["choices"][0]["message"]["content"], text);
  EXPECT_EQ(stream("/v1/fim/completions", raw).text(), text);
  const json body = {
      {"input_prefix", "a"}, {"prompt", "b"}, {"input_suffix", "cd"}, {"n_predict", 16}};
  const json plain = post("/infill", body).json();
  EXPECT_EQ(plain["content"], text);
  EXPECT_EQ(plain["tokens_evaluated"], 4);
  const Events events = stream("/infill", body);
  std::string streamed;
  for (const json& event : events.data) streamed += event["content"];
  EXPECT_EQ(streamed, text);
  EXPECT_EQ(events.data.back()["stop"], true);
  EXPECT_EQ(events.data.back()["tokens_predicted"], plain["tokens_predicted"]);
}

TEST_F(DialectsTest, RoutersAndEditorsLearnWhatIsServed) {
  start();
  EXPECT_EQ(get("/model_info").json().at("served_model_name"), "demo");
  EXPECT_EQ(get("/get_server_info").json().at("context_length"), FakeDenoiser::kMaxLength);
  EXPECT_EQ(get("/props").json()["default_generation_settings"]["n_ctx"], FakeDenoiser::kMaxLength);
  EXPECT_EQ(get("/slots").json().size(), static_cast<size_t>(settings.engine.max_running));
  EXPECT_EQ(get("/v1/models").json()["data"][0]["max_model_len"], FakeDenoiser::kMaxLength);
}

TEST_F(DialectsTest, AClientThatLeavesEndsTheScoringOfItsPrompt) {
  control->forward_ms = 20;
  start();
  const json body = {
      {"prompt", std::string(500, 'a')}, {"echo", true}, {"logprobs", 0}, {"max_tokens", 0}};
  RawClient client(port);
  client.send(make_request("POST", "/v1/completions", body.dump()));
  EXPECT_TRUE(eventually([&] { return control->num_forwards > 3; }));
  // Who closes right behind the request may be one that still reads (nc -N).
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  client.close();
  EXPECT_TRUE(eventually(
      [&] { return get("/metrics").body.find("status=\"499\"} 1\n") != std::string::npos; }));
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; }));
  EXPECT_LT(engine->stats().logit_rows, 500);
}

}  // namespace
}  // namespace bicached
