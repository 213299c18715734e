#include <algorithm>

#include "http/server_fixture.h"

namespace bicached {
namespace {

using Clock = std::chrono::steady_clock;

class LimitsTest : public ServerTest {
 protected:
  static constexpr const char* kChat = "/v1/chat/completions";

  nlohmann::json long_body() {
    nlohmann::json body = chat_body();
    body["max_tokens"] = 1000;
    return body;
  }
};

TEST_F(LimitsTest, ManyClientsGetAnAnswerOrAreToldToWait) {
  settings.engine.max_queued = 16;
  settings.engine.max_running = 4;
  control->forward_ms = 1;
  start();
  std::atomic<int> answered{0}, refused{0}, other{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 64; ++i) {
    clients.emplace_back([&, i] {
      const Response response = post(kChat, chat_body("client " + std::to_string(i)));
      if (response.status == 200) {
        ++answered;
      } else if (response.status == 429 && response.error_code() == "queue_full" &&
                 std::stoi(response.headers.at("retry-after")) >= 1) {
        ++refused;
      } else {
        ++other;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(other, 0);
  EXPECT_GE(answered, 16);
  EXPECT_EQ(answered + refused, 64);
}

TEST_F(LimitsTest, HealthAndMetricsAnswerWhileEverythingElseIsBusy) {
  settings.engine.max_queued = 8;
  settings.engine.max_running = 2;
  settings.server.num_spare_threads = 2;
  control->forward_ms = 20;
  control->end_one_in = 0;
  start();
  std::vector<std::unique_ptr<RawClient>> clients;
  nlohmann::json body = long_body();
  for (int i = 0; i < 40; ++i) {  // streams, plain requests, heads and bodies that never end
    clients.push_back(std::make_unique<RawClient>(port));
    body["stream"] = i % 2 == 0;
    std::string bytes = make_request("POST", kChat, body.dump());
    if (i % 4 == 1) bytes.pop_back();
    if (i % 4 == 3) bytes.resize(20);
    clients.back()->send(bytes);
  }
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 40; ++i) {  // connections kept open between requests
    idle.push_back(std::make_unique<RawClient>(port));
    idle.back()->send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    idle.back()->read_until(
        [](const std::string& all) { return all.find("\"ok\"") != std::string::npos; });
  }
  body["stream"] = true;
  EXPECT_TRUE(eventually([&] {  // some were refused while the engine had not taken the first
    if (engine->stats().running == 2 && engine->stats().queued == 8) return true;
    clients.push_back(std::make_unique<RawClient>(port));
    clients.back()->send(make_request("POST", kChat, body.dump()));
    return false;
  }));
  // All that could wait for a worker waits now; these don't.
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(get("/metrics").status, 200);
  EXPECT_EQ(post(kChat, chat_body()).status, 429);
}

TEST_F(LimitsTest, ARefusedCanvasListIsRefusedAsAWhole) {
  settings.engine.max_queued = 4;
  start();
  nlohmann::json body = chat_body();
  body["n"] = 5;
  const Response response = post(kChat, body);
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.error_param(), "n");
}

TEST_F(LimitsTest, BodiesOverTheLimitAreRefusedAtOnce) {
  settings.server.max_body_bytes = 2000;
  start();
  const auto start_time = Clock::now();
  EXPECT_EQ(post(kChat, chat_body(std::string(3000, 'a'))).error_code(), "request_too_large");
  EXPECT_EQ(
      exchange("POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\nabc").status,
      413);
  EXPECT_EQ(
      exchange("POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nbb8\r\n" +
               std::string(3000, 'a') + "\r\n0\r\n\r\n")
          .status,
      413);
  EXPECT_LT(Clock::now() - start_time, std::chrono::seconds(5));
}

/// It can't be taken for a request: where it ends is beyond doubt.
TEST_F(LimitsTest, TheBodyOfAGetIsReadAndMeansNothing) {
  start();
  const std::string hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";
  RawClient client(port);
  client.send(
      "GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(hidden.size()) +
      "\r\n\r\n" + hidden + "GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string all = client.read_all();
  EXPECT_EQ(all.find("HTTP/1.1 200"), 0u) << all;
  EXPECT_NE(all.find("HTTP/1.1 404"), std::string::npos) << all;
  EXPECT_NE(all.find("/nowhere"), std::string::npos) << all;
  EXPECT_EQ(all.find("/hidden"), std::string::npos) << all;
}

TEST_F(LimitsTest, AttacksOnFramingAreRefusedAndEndTheConnection) {
  start();
  const std::string attacks[] = {
      "GARBAGE\r\n\r\n",
      "GET /health\r\n\r\n",
      "GET  /health HTTP/1.1\r\nHost: x\r\n\r\n",
      "POST /tokenize HTTP/1.1\r\nHost: x\r\n\r\n{}",
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: "
      "chunked\r\n\r\n{}",
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
      "chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
      "GET /health HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n",
      "GET /" + std::string(9000, 'a') + " HTTP/1.1\r\nHost: x\r\n\r\n",
      "GET /health HTTP/1.1\r\nHost: x\r\nA: " + std::string(70000, 'a') + "\r\n\r\n",
      "GET /health HTTP/1.1\r\nHost: x\r\nA: " + std::string(100000, 'a'),
  };
  for (const std::string& attack : attacks) {
    const Response response = exchange(attack);
    EXPECT_GE(response.status, 400) << attack.substr(0, 80);
    EXPECT_LT(response.status, 500) << attack.substr(0, 80);
    EXPECT_EQ(response.headers.at("connection"), "close") << attack.substr(0, 80);
    EXPECT_TRUE(response.json().contains("error")) << attack.substr(0, 80);
    EXPECT_EQ(response.headers.count("x-request-id"), 1u) << attack.substr(0, 80);
  }
  EXPECT_EQ(exchange("POST /tokenize HTTP/1.1\r\nHost: x\r\n\r\n{}").status, 411);
  EXPECT_EQ(
      exchange("GET /health HTTP/1.1\r\nHost: x\r\nA: " + std::string(70000, 'a') + "\r\n\r\n")
          .status,
      431);
  EXPECT_EQ(get("/health").status, 200);
}

TEST_F(LimitsTest, ABodyThatEndsEarlyIsRefused) {
  start();
  for (const char* body : {"-2\r\nab\r\n0\r\n\r\n", "ffffffffffffffff\r\nab", "5\r\nab", ""}) {
    RawClient client(port);
    client.send(
        std::string("POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n") +
        body);
    client.end_sending();
    const Response response = parse_response(client.read_all());
    EXPECT_GE(response.status, 400) << body;
    EXPECT_LT(response.status, 500) << body;
  }
  EXPECT_EQ(get("/health").status, 200);
}

TEST_F(LimitsTest, LibraryFeaturesThatNobodyAskedForStayOff) {
  start();
  EXPECT_EQ(
      exchange("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: bytes=0-1\r\n\r\n")
          .body,
      R"({"status":"ok"})");
  EXPECT_EQ(
      exchange("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUpgrade: websocket\r\n"
               "Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n")
          .status,
      200);
  const std::string body = R"({"content":")" + std::string(20000, 'a') + "\"}";
  EXPECT_EQ(post_text("/tokenize", body, {{"Content-Type", "application/x-www-form-urlencoded"}})
                .json()
                .at("count"),
            20000);
  EXPECT_EQ(post_text("/tokenize", body, {{"Content-Encoding", "gzip"}}).status, 415);
}

TEST_F(LimitsTest, OneConnectionServesManyRequestsAlsoPipelined) {
  start();
  RawClient client(port);
  const std::string tokenize = R"({"content":"ab"})";
  client.send(
      "GET /health HTTP/1.1\r\nHost: x\r\n\r\nPOST /tokenize HTTP/1.1\r\nHost: "
      "x\r\nContent-Length: " +
      std::to_string(tokenize.size()) + "\r\n\r\n" + tokenize +
      "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string all = client.read_all();
  EXPECT_NE(all.find("\"ok\""), std::string::npos) << all;
  EXPECT_NE(all.find("\"count\":2"), std::string::npos) << all;
  EXPECT_NE(all.find("\"bicached\""), std::string::npos) << all;
}

/// Who pipelines and reads nothing is answered as long as the answers go somewhere. What the system
/// takes by itself would be some ten thousand of them, of each connection.
TEST_F(LimitsTest, WhoReadsNoAnswerGetsFewOfThem) {
  start();
  RawClient client(port);
  std::string many;
  for (int i = 0; i < 40000; ++i) many += "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
  const auto num_answered = [&] {
    const std::string metrics = get("/metrics").body;
    const std::string name = R"(bicached_http_responses_total{route="/health",status="200"} )";
    const size_t at = metrics.find(name);
    return at == std::string::npos ? 0 : std::stoi(metrics.substr(at + name.size()));
  };
  int before = -1, answered = 0;
  for (int same = 0; same < 20;) {  // until it stands still
    client.send_some(many);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    answered = num_answered();
    same = answered == before ? same + 1 : 0;
    before = answered;
  }
  EXPECT_GT(answered, 0);
  EXPECT_LT(answered, 4000);
}

TEST_F(LimitsTest, IdleConnectionsAreClosed) {
  settings.server.keep_alive_ms = 200;
  start();
  RawClient client(port);
  client.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  const auto start_time = Clock::now();
  EXPECT_EQ(parse_response(client.read_all()).status, 200);
  EXPECT_LT(Clock::now() - start_time, std::chrono::seconds(2));
}

TEST_F(LimitsTest, AFailedDeviceIs503Everywhere) {
  start();
  control->device_failed = true;
  const Response failed = post(kChat, chat_body());
  EXPECT_EQ(failed.status, 503);
  EXPECT_EQ(failed.error_code(), "device_failed");
  EXPECT_EQ(get("/ready").error_code(), "device_failed");
  EXPECT_EQ(post(kChat, chat_body()).error_code(), "device_failed");
  EXPECT_EQ(get("/health").status, 200);
}

TEST_F(LimitsTest, DrainingFinishesWhatRunsAndRefusesTheRest) {
  control->forward_ms = 5;
  control->end_one_in = 0;
  start();
  std::vector<Events> results(4);
  std::vector<std::thread> clients;
  for (Events& result : results) {
    clients.emplace_back([&] { result = stream(kChat, chat_body()); });
  }
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 4; }));
  server->begin_drain();
  EXPECT_EQ(get("/ready").error_code(), "draining");
  const Response refused = post(kChat, chat_body());
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.error_code(), "draining");
  EXPECT_EQ(refused.headers.count("retry-after"), 1u);
  EXPECT_EQ(get("/health").status, 200);
  engine->stop(std::chrono::seconds(10));
  server->stop();
  thread.join();
  for (std::thread& client : clients) client.join();
  for (const Events& result : results) {
    EXPECT_TRUE(result.done);
    EXPECT_EQ(result.text().size(), 32u);
  }
}

TEST_F(LimitsTest, WhatTheDrainTimeoutCutsGetsAnErrorEvent) {
  control->forward_ms = 5;
  control->end_one_in = 0;
  start();
  Events result;
  std::thread client([&] { result = stream(kChat, long_body()); });
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 1; }));
  stop();
  client.join();
  EXPECT_FALSE(result.done);
  EXPECT_EQ(result.data.back().at("error").at("code"), "draining");
}

}  // namespace
}  // namespace bicached
