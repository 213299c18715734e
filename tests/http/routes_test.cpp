#include <gmock/gmock.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "http/server_fixture.h"

namespace bicached {
namespace {

class RoutesTest : public ServerTest {};

TEST_F(RoutesTest, AnswersOperators) {
  start();
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(get("/ready").status, 200);
  EXPECT_EQ(get("/version").json().at("name"), "bicached");
  EXPECT_THAT(get("/version").json().at("build").get<std::string>(),
              testing::MatchesRegex("(gcc|clang) [0-9]+\\.[0-9]+\\.[0-9]+"));
  const Response config = get("/config");
  EXPECT_EQ(config.json().at("max_running"), settings.engine.max_running);
  EXPECT_EQ(config.json().at("api_key_required"), false);
  EXPECT_FALSE(config.json().contains("api_key_file"));
}

TEST_F(RoutesTest, HeadIsGetWithoutTheBody) {
  start();
  const Response response = exchange(make_request("HEAD", "/health"));
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(response.body.empty());
}

TEST_F(RoutesTest, ListsTheModelAndItsAliases) {
  settings.server.alias = {"gpt-4o", "org/name"};
  start();
  const nlohmann::json list = get("/v1/models").json();
  ASSERT_EQ(list.at("data").size(), 3u);
  EXPECT_EQ(list["data"][0]["id"], "demo");
  EXPECT_EQ(get("/v1/models/demo").json().at("object"), "model");
  EXPECT_EQ(get("/v1/models/org/name").json().at("id"), "org/name");
  EXPECT_EQ(get("/v1/models/other").error_code(), "model_not_found");
  nlohmann::json body = chat_body();
  body["model"] = "gpt-4o";
  EXPECT_EQ(post("/v1/chat/completions", body).status, 200);
  body["model"] = "other";
  const Response response = post("/v1/chat/completions", body);
  EXPECT_EQ(response.status, 404);
  EXPECT_EQ(response.error_code(), "model_not_found");
}

TEST_F(RoutesTest, AStarAcceptsAnyName) {
  settings.server.alias = {"*"};
  start();
  nlohmann::json body = chat_body();
  body["model"] = "anything";
  EXPECT_EQ(post("/v1/chat/completions", body).status, 200);
  EXPECT_EQ(get("/v1/models").json().at("data").size(), 1u);
}

TEST_F(RoutesTest, TextToolsAreInverse) {
  start();
  const nlohmann::json tokens = post("/tokenize", {{"content", "h\u00e4<end>"}}).json();
  EXPECT_EQ(tokens.at("count"), 4);
  EXPECT_EQ(post("/detokenize", {{"tokens", tokens["tokens"]}}).json().at("content"),
            "h\u00e4<end>");
  EXPECT_EQ(post("/tokenize", {{"prompt", "ab"}, {"add_special", true}}).json().at("count"), 2);
  EXPECT_EQ(post("/tokenize", chat_body("x")).json().at("count"), 17);
  EXPECT_EQ(post("/apply-template", chat_body("x")).json().at("prompt"), "user:x\nassistant:");
  EXPECT_EQ(post("/tokenize", {{"other", "ab"}}).error_param(), "content");
  EXPECT_EQ(post("/detokenize", {{"tokens", {300}}}).error_param(), "tokens");
  EXPECT_EQ(post("/detokenize", {{"tokens", "a"}}).error_param(), "tokens");
}

TEST_F(RoutesTest, EverySpellingOfAPathIsItsRoute) {
  start();
  for (const char* path : {"/", "/ping", "/health", "/health/", "/v1/health", "//health", "/models",
                           "/v1/models", "/v1/models/", "/v1//models", "/v1/v1/models"}) {
    const Response response = get(path);
    EXPECT_EQ(response.status, 200) << path;
  }
  EXPECT_EQ(post("/chat/completions", chat_body()).status, 200);
  EXPECT_EQ(post("/v1//chat/completions/", chat_body()).status, 200);
}

TEST_F(RoutesTest, UnknownRoutesAndMethodsHaveJsonErrors) {
  start();
  for (const char* path :
       {"/v1", "/v1/chat", "/v2/models", "/healthy", "/v1/modelsx", "/..%2f..%2fetc/passwd"}) {
    const Response response = get(path);
    EXPECT_EQ(response.status, 404) << path;
    EXPECT_EQ(response.error_code(), "not_found") << path;
    EXPECT_EQ(response.headers.count("x-request-id"), 1u) << path;
  }
  const Response wrong = get("/v1/chat/completions");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.error_code(), "method_not_allowed");
  EXPECT_EQ(wrong.headers.at("allow"), "POST");
  EXPECT_EQ(post("/health", {}).status, 405);
  EXPECT_EQ(exchange(make_request("DELETE", "/v1/models")).status, 405);
  EXPECT_EQ(exchange(make_request("OPTIONS", "/v1/models")).headers.at("allow"),
            "GET, HEAD, OPTIONS");
}

TEST_F(RoutesTest, WhereARequestGoesIsAskedBeforeItsBody) {
  start();
  const std::string rest = " HTTP/1.1\r\nHost: x\r\n\r\n";
  EXPECT_EQ(exchange("POST /nowhere" + rest).status, 404);
  EXPECT_EQ(exchange("POST /health" + rest).status, 405);
  EXPECT_EQ(exchange("PUT /tokenize" + rest).status, 405);
  EXPECT_EQ(exchange("POST /tokenize" + rest).status, 411);
  const std::string with_body = " HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
  EXPECT_EQ(exchange("QUERY /v1/models" + with_body).status, 405);
  EXPECT_EQ(exchange("OPTIONS /v1/models" + with_body).status, 200);
}

TEST_F(RoutesTest, EveryResponseCarriesTheRequestId) {
  start();
  const auto with_id = [](const std::string& id) {
    return "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: " + id +
           "\r\n\r\n";
  };
  EXPECT_EQ(exchange(with_id("my-id.7")).headers.at("x-request-id"), "my-id.7");
  const Response attacked = exchange(with_id("a%0d%0aInjected: 1"));
  EXPECT_EQ(attacked.status, 200);
  EXPECT_EQ(attacked.headers.count("injected"), 0u);
  EXPECT_EQ(attacked.headers.at("x-request-id").find('%'), std::string::npos);
  EXPECT_EQ(post("/v1/chat/completions", {}).headers.count("x-request-id"), 1u);
  EXPECT_EQ(post("/v1/chat/completions", chat_body()).headers.count("x-request-id"), 1u);
  nlohmann::json streamed = chat_body();
  streamed["stream"] = true;
  EXPECT_EQ(post("/v1/chat/completions", streamed).headers.count("x-request-id"), 1u);
  EXPECT_EQ(exchange("GET /health HTTP/9\r\n\r\n").headers.count("x-request-id"), 1u);
}

TEST_F(RoutesTest, OnlyKeysLetIn) {
  const std::string path =
      testing::TempDir() + "bicached_server_keys_" + std::to_string(::getpid());
  std::ofstream(path) << "alpha-1\n";
  settings.server.api_key_file = path;
  start();
  std::remove(path.c_str());
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(get("/ready").status, 200);
  for (const char* closed : {"/metrics", "/config", "/version", "/v1/models", "/nothing"}) {
    const Response response = get(closed);
    EXPECT_EQ(response.status, 401) << closed;
    EXPECT_EQ(response.error_code(), "invalid_api_key") << closed;
  }
  const std::string body = chat_body().dump();
  EXPECT_EQ(post_text("/v1/chat/completions", body).status, 401);
  EXPECT_EQ(post_text("/v1/chat/completions", body, {{"Authorization", "Bearer alpha-2"}}).status,
            401);
  EXPECT_EQ(post_text("/v1/chat/completions", body, {{"Authorization", "Bearer alpha-1"}}).status,
            200);
}

TEST_F(RoutesTest, BeforeTheModelIsLoadedItSaysSo) {
  settings.server.port = 0;
  HttpServer early(settings);
  port = early.bind();
  std::thread runner([&] { early.run(); });
  EXPECT_EQ(get("/health").status, 200);
  const Response ready = get("/ready");
  EXPECT_EQ(ready.status, 503);
  EXPECT_EQ(ready.error_code(), "not_ready");
  EXPECT_EQ(ready.headers.count("retry-after"), 1u);
  EXPECT_EQ(post("/v1/chat/completions", chat_body()).error_code(), "not_ready");
  EXPECT_EQ(post("/tokenize", {{"content", "x"}}).error_code(), "not_ready");
  EXPECT_EQ(get("/metrics").status, 200);
  early.stop();
  runner.join();
}

TEST_F(RoutesTest, MetricsCountRequestsAndWork) {
  control->end_one_in = 0;  // several tokens, one after the other
  start();
  const nlohmann::json usage = post("/v1/chat/completions", chat_body()).json().at("usage");
  get("/nowhere");
  const std::string text = get("/metrics").body;
  const auto has = [&](const std::string& line) { return text.find(line) != std::string::npos; };
  EXPECT_TRUE(has("bicached_http_responses_total{route=\"/v1/chat/completions\",status=\"200\"} 1"))
      << text;
  EXPECT_TRUE(has("bicached_http_responses_total{route=\"other\",status=\"404\"} 1")) << text;
  EXPECT_TRUE(has("bicached_completion_tokens_total{model=\"fake\"} " +
                  usage.at("completion_tokens").dump()));
  EXPECT_TRUE(
      has("bicached_prompt_tokens_total{model=\"fake\"} " + usage.at("prompt_tokens").dump()));
  EXPECT_TRUE(has("# HELP bicached_forwards_total"));
  EXPECT_TRUE(has("bicached_running 0"));
  EXPECT_TRUE(has("bicached_request_seconds_count{model=\"fake\"} 1"));
  EXPECT_TRUE(has("bicached_first_token_seconds_bucket"));
  EXPECT_TRUE(has("bicached_inter_token_seconds_count{model=\"fake\"} 1")) << text;
  EXPECT_TRUE(has("bicached_build_info{")) << text;
  EXPECT_TRUE(has("bicached_model_info{")) << text;
  for (const char* name :
       {"process_cpu_seconds_total", "process_start_time_seconds", "process_resident_memory_bytes",
        "process_virtual_memory_bytes", "process_open_fds", "process_max_fds"}) {
    const size_t at = text.find(std::string("\n") + name + " ");
    ASSERT_NE(at, std::string::npos) << name;
    EXPECT_GE(std::stod(text.substr(at + 2 + std::string(name).size())), 0) << name;
  }
}

TEST_F(RoutesTest, TwoServersCannotShareAPort) {
  start();
  Settings other = settings;
  other.server.port = port;
  HttpServer second(other);
  EXPECT_THROW(second.bind(), Error);
}

}  // namespace
}  // namespace bicached
