// What operators rely on: keys, pages in browsers, draining, clients that take their time.
#include <cstdio>
#include <fstream>

#include <unistd.h>

#include "http/server_fixture.h"

namespace bicached {
namespace {

using Clock = std::chrono::steady_clock;
using Headers = std::vector<std::pair<std::string, std::string>>;

class OperationsTest : public ServerTest {
 protected:
  static constexpr const char* kChat = "/v1/chat/completions";
  ~OperationsTest() override {
    std::remove(key_file.c_str());
    std::remove(admin_file.c_str());
  }

  void use_keys(const std::string& keys, const std::string& admins = "") {
    std::ofstream(key_file) << keys;
    settings.server.api_key_file = key_file;
    if (admins.empty()) return;
    std::ofstream(admin_file) << admins;
    settings.server.admin_key_file = admin_file;
  }
  int status_of(const std::string& method, const std::string& path, const Headers& headers) {
    return exchange(make_request(method, path, "", headers)).status;
  }
  int get_with_key(const std::string& path, const std::string& key) {
    return status_of("GET", path, {{"Authorization", "Bearer " + key}});
  }

  const std::string key_file =
      testing::TempDir() + "bicached_operations_keys_" + std::to_string(::getpid());
  const std::string admin_file =
      testing::TempDir() + "bicached_operations_admins_" + std::to_string(::getpid());
};

TEST_F(OperationsTest, KeysComeInTheHeadersThatClientsUse) {
  use_keys("one\n");
  start();
  for (const Headers& good :
       std::vector<Headers>{{{"Authorization", "Bearer one"}},
                            {{"authorization", "bEARER   one"}},
                            {{"X-Api-Key", "one"}},
                            {{"api-key", "one"}},
                            {{"API-KEY", "one"}},
                            {{"Authorization", "Bearer x"}, {"api-key", "one"}},
                            {{"Authorization", "Bearer one"}, {"Authorization", "Bearer one"}}}) {
    EXPECT_EQ(status_of("GET", "/v1/models", good), 200) << good[0].first << good[0].second;
  }
  for (const Headers& bad : std::vector<Headers>{{},
                                                 {{"Authorization", "one"}},
                                                 {{"Authorization", "Basic one"}},
                                                 {{"Authorization", "Bearerone"}},
                                                 {{"X-Api-Key", ""}},
                                                 {{"X-Api-Key", "two"}},
                                                 {{"x-key", "one"}}}) {
    EXPECT_EQ(status_of("GET", "/v1/models", bad), 401);
  }
  EXPECT_EQ(status_of("GET", "/v1/models",
                      {{"Authorization", "Bearer one"}, {"Authorization", "Bearer two"}}),
            400);
}

TEST_F(OperationsTest, KeysAreReadAnewAndABrokenFileChangesNothing) {
  use_keys("old\n");
  start();
  std::ofstream(key_file) << "new\n";
  EXPECT_EQ(get_with_key("/v1/models", "old"), 200);
  server->reload_keys();
  EXPECT_EQ(get_with_key("/v1/models", "old"), 401);
  EXPECT_EQ(get_with_key("/v1/models", "new"), 200);
  std::ofstream(key_file) << "# nobody\n";
  server->reload_keys();
  EXPECT_EQ(get_with_key("/v1/models", "new"), 200);
}

TEST_F(OperationsTest, WhatTellsOfAllRequestsNeedsAnAdmin) {
  use_keys("one\ntwo\n", "boss\n");
  start();
  for (const char* path : {"/v1/cache", "/config"}) {
    EXPECT_EQ(get_with_key(path, "one"), 403) << path;
    EXPECT_EQ(get_with_key(path, "boss"), 200) << path;
    EXPECT_EQ(get_with_key(path, "other"), 401) << path;
  }
  EXPECT_EQ(status_of("DELETE", "/v1/cache", {{"Authorization", "Bearer two"}}), 403);
  EXPECT_EQ(status_of("DELETE", "/v1/cache", {{"Authorization", "Bearer boss"}}), 200);
  EXPECT_EQ(get_with_key("/v1/models", "boss"), 200);
}

TEST_F(OperationsTest, TheOnlyKeyIsAnAdminsAndOfSeveralNoneIs) {
  use_keys("one\n");
  start();
  EXPECT_EQ(get_with_key("/config", "one"), 200);
  std::ofstream(key_file) << "one\ntwo\n";
  server->reload_keys();
  EXPECT_EQ(get_with_key("/config", "one"), 403);
}

TEST_F(OperationsTest, TwoKeysShareNoPrefixUnlessTheyMay) {
  for (const char* salted : {"auto", "off", "on"}) {
    stop();
    use_keys("one\ntwo\n");
    settings.server.salt_by_key = salted;
    settings.cache.policy = "fixed";
    settings.cache.depth = 1;
    settings.cache.min_prefix_len = 1;
    start();
    const auto cached = [&](const std::string& key) {
      const nlohmann::json body = {{"messages",
                                    {{{"role", "system"}, {"content", "a long system prompt"}},
                                     {{"role", "user"}, {"content", "x"}}}}};
      const Response response = post_text(kChat, body.dump(), {{"Authorization", "Bearer " + key}});
      return response.json().at("usage").at("prompt_tokens_details").at("cached_tokens").get<int>();
    };
    cached("one");
    EXPECT_TRUE(eventually([&] { return cached("one") > 0; })) << salted;
    EXPECT_EQ(cached("two") > 0, std::string(salted) == "off") << salted;
  }
}

TEST_F(OperationsTest, PagesMayAskBeforeTheyHaveAKey) {
  use_keys("one\n");
  start();
  const Headers preflight = {{"Origin", "http://localhost:3000"},
                             {"Access-Control-Request-Method", "POST"},
                             {"Access-Control-Request-Headers", "authorization, content-type"}};
  const Response asked = exchange(make_request("OPTIONS", kChat, "", preflight));
  EXPECT_EQ(asked.status, 200);
  EXPECT_EQ(asked.headers.at("access-control-allow-origin"), "http://localhost:3000");
  EXPECT_EQ(asked.headers.at("access-control-allow-methods"), "GET, POST, DELETE, OPTIONS");
  EXPECT_EQ(asked.headers.at("access-control-allow-headers"), "authorization, content-type");
  EXPECT_EQ(asked.headers.at("vary"), "Origin");
  // On every answer: a page has to read errors and streams as well.
  nlohmann::json streamed = chat_body();
  streamed["stream"] = true;
  const Headers good = {{"Origin", "null"}, {"Authorization", "Bearer one"}};
  EXPECT_EQ(post_text(kChat, streamed.dump(), good).headers.at("access-control-allow-origin"),
            "null");
  EXPECT_EQ(post_text(kChat, "{", good).headers.at("access-control-allow-origin"), "null");
  EXPECT_EQ(
      post_text(kChat, "{", {{"Origin", "http://a"}}).headers.at("access-control-allow-origin"),
      "http://a");
  EXPECT_EQ(get("/health").headers.count("access-control-allow-origin"), 0u);
}

TEST_F(OperationsTest, OnlyNamedOriginsMayRead) {
  settings.server.cors_origins = {"https://a.example", "http://b:1"};
  start();
  const auto allowed = [&](const std::string& origin) {
    const Headers headers = {{"Origin", origin}, {"Access-Control-Request-Method", "POST"}};
    return exchange(make_request("OPTIONS", kChat, "", headers))
                   .headers.count("access-control-allow-origin") > 0 &&
           exchange(make_request("GET", "/v1/models", "", headers))
                   .headers.count("access-control-allow-origin") > 0;
  };
  EXPECT_TRUE(allowed("https://a.example"));
  EXPECT_TRUE(allowed("http://b:1"));
  for (const char* other :
       {"https://a.example.evil", "http://a.example", "http://b", "*", "null"}) {
    EXPECT_FALSE(allowed(other)) << other;
  }
}

TEST_F(OperationsTest, WhatNoBrowserSendsIsNoOrigin) {
  for (const char* wrong : {"a.example", "https://", "://a", "https://a.example/", ""}) {
    settings.server.cors_origins = {"http://a", wrong};
    EXPECT_THROW(HttpServer{settings}, Error) << wrong;
  }
  settings.server.cors_origins = {"*", "localhost", "null", "app://x", "http://[::1]:8"};
  EXPECT_NO_THROW(HttpServer{settings});
}

TEST_F(OperationsTest, LocalhostStandsForPagesOfThisMachine) {
  settings.server.cors_origins = {"localhost"};
  start();
  const auto allowed = [&](const std::string& origin) {
    return exchange(make_request("GET", "/v1/models", "", {{"Origin", origin}}))
               .headers.count("access-control-allow-origin") > 0;
  };
  for (const char* ours : {"http://localhost", "http://localhost:3000", "https://127.0.0.1:1",
                           "http://127.0.0.1", "http://[::1]", "http://[::1]:8080"}) {
    EXPECT_TRUE(allowed(ours)) << ours;
  }
  for (const char* other :
       {"http://localhost.evil.com", "http://notlocalhost", "http://localhost:", "http://evil.com",
        "http://localhost:80@evil.com", "http://localhost:80.evil.com", "null", "file://localhost",
        "http://127.0.0.10", "http://evil.com:80/http://localhost"}) {
    EXPECT_FALSE(allowed(other)) << other;
  }
}

TEST_F(OperationsTest, WhoIsRefusedWhileSendingReadsWhy) {
  start();
  RawClient client(port);
  client.send("POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n");
  // Longer than a connection lingers that sends nothing.
  for (int i = 0; i < 30; ++i) {
    client.send(std::string(1000, ' '));
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_EQ(parse_response(client.read_all()).status, 413);
}

TEST_F(OperationsTest, OptionsTellsWhatAPathTakes) {
  start();
  EXPECT_EQ(exchange(make_request("OPTIONS", kChat)).headers.at("allow"), "POST, OPTIONS");
  EXPECT_EQ(status_of("OPTIONS", "*", {}), 200);
}

TEST_F(OperationsTest, SlowBodiesHoldNoPlace) {
  settings.engine.max_queued = 2;
  settings.engine.max_running = 1;
  start();
  std::vector<std::unique_ptr<RawClient>> slow;
  for (int i = 0; i < 50; ++i) {
    slow.push_back(std::make_unique<RawClient>(port));
    slow.back()->send("POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{");
  }
  EXPECT_EQ(post(kChat, chat_body()).status, 200);
}

TEST_F(OperationsTest, ClientsThatDoNotReadHoldUpNobody) {
  start();
  std::vector<std::unique_ptr<RawClient>> unread;
  std::string many;
  for (int i = 0; i < 2000; ++i) many += "GET /version HTTP/1.1\r\nHost: x\r\n\r\n";
  for (int i = 0; i < 120; ++i) {  // more than there are threads
    unread.push_back(std::make_unique<RawClient>(port));
    unread.back()->send_some(many);
  }
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(post(kChat, chat_body()).status, 200);
}

TEST_F(OperationsTest, LongBodiesAreBoundedInSum) {
  settings.server.max_body_bytes = 200000;  // 16 of them are held
  start();
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 40; ++i) {
    clients.push_back(std::make_unique<RawClient>(port));
    clients.back()->send("POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" +
                         std::string(199999, ' '));
  }
  EXPECT_EQ(post(kChat, chat_body()).status, 200);  // a short one passes
  int num_refused = 0;
  for (size_t i = 0; i < clients.size(); ++i) {
    clients[i]->end_sending();
    const Response response = parse_response(clients[i]->read_all());
    if (response.status == 429) ++num_refused;
  }
  EXPECT_GE(num_refused, 20);
  const std::string body = R"({"content":")" + std::string(150000, 'a') + "\"}";
  EXPECT_EQ(post_text("/tokenize", body).status, 200);  // all is given back
}

TEST_F(OperationsTest, LongHeadsAreBoundedInSum) {
  start();
  std::string head = "GET /health HTTP/1.1\r\nHost: x\r\n";
  for (int i = 0; i < 8; ++i) head += "X: " + std::string(7800, 'a') + "\r\n";
  std::vector<std::unique_ptr<RawClient>> clients;  // 19 MB together, and 16 are allowed
  for (int i = 0; i < 300; ++i) {
    clients.push_back(std::make_unique<RawClient>(port));
    clients.back()->send(head);
  }
  EXPECT_EQ(parse_response(clients.back()->read_all()).status, 429);
  EXPECT_EQ(get("/health").status, 200) << "short ones arrive all the same";
  clients.front()->send("Connection: close\r\n\r\n");
  EXPECT_EQ(parse_response(clients.front()->read_all()).status, 200);
}

/// The client that does not read for longest goes, and no other.
TEST_F(OperationsTest, AnswersThatNobodyTakesAreBoundedInSum) {
  // The system takes little for a socket of this kind, and always as much.
  const std::string path = ::testing::TempDir() + "bicached_answers_test.sock";
  settings.server.host = {path, "127.0.0.1"};
  start();
  const std::string request = make_request(
      "POST", "/apply-template",
      nlohmann::json{{"messages", {{{"role", "user"}, {"content", std::string(3 << 20, 'a')}}}}}
          .dump());
  std::vector<std::unique_ptr<RawClient>> clients;  // over 80 MB together, and 64 are allowed
  for (int i = 0; i < 30; ++i) {
    clients.push_back(std::make_unique<RawClient>(path));
    clients.back()->send(request);
    clients.back()->read_until([](const std::string& begun) { return !begun.empty(); });
  }
  const auto is_whole = [](const std::string& answer) { return answer.size() > (3 << 20); };
  EXPECT_TRUE(is_whole(clients.back()->read_all()));
  EXPECT_FALSE(is_whole(clients.front()->read_all()));
}

TEST_F(OperationsTest, ADrainAnswersWhoIsConnected) {
  control->forward_ms = 5;
  control->end_one_in = 0;
  start();
  RawClient running(port), idle(port), half(port);
  running.send(make_request("POST", kChat, chat_body().dump()));
  half.send("POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 1; }));
  server->begin_drain();
  RawClient during(port);
  during.send("POST " + std::string(kChat) + " HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}");
  const Response refused = parse_response(during.read_all());
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.at("connection"), "close");
  engine->stop(std::chrono::seconds(10));
  const auto begin = Clock::now();
  server->stop();
  idle.send(make_request("POST", kChat, chat_body().dump()));
  EXPECT_EQ(parse_response(idle.read_all()).status, 503);
  EXPECT_EQ(parse_response(half.read_all()).status, 503);
  EXPECT_EQ(parse_response(running.read_all()).status, 200);
  thread.join();
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(8));
}

TEST_F(OperationsTest, AStopDoesNotWaitForWhoReadsSlowly) {
  start();
  RawClient unread(port);
  std::string many;
  for (int i = 0; i < 5000; ++i) many += "GET /version HTTP/1.1\r\nHost: x\r\n\r\n";
  unread.send_some(many);
  EXPECT_EQ(get("/health").status, 200);
  const auto begin = Clock::now();
  stop();
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(8));
}

}  // namespace
}  // namespace bicached
