#include <cstdio>
#include <fstream>

#include <unistd.h>

#include "http/server_fixture.h"

namespace bicached {
namespace {

class CacheRoutesTest : public ServerTest {
 protected:
  Response drop() { return exchange(make_request("DELETE", "/v1/cache")); }

  /// A server that reuses a system prompt from its second request on, two layers deep.
  void start_with_cache() {
    settings.cache.policy = "fixed";
    settings.cache.depth = 2;
    start();
  }
  nlohmann::json ask(const std::string& question, nlohmann::json more = nlohmann::json::object()) {
    more["messages"] = {{{"role", "system"}, {"content", kSystem}},
                        {{"role", "user"}, {"content", question}}};
    return post("/v1/chat/completions", more).json();
  }

  const std::string kSystem = std::string(60, 's');
  const int kPrefixTokens = 7 + 60 + 1;  // "system:", the text, end of line
};

TEST_F(CacheRoutesTest, AnEmptyCacheIsReported) {
  start();
  const Response response = get("/v1/cache");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.json().at("entries").size(), 0u);
  EXPECT_EQ(response.json().at("bytes"), 0);
  EXPECT_EQ(drop().json(), (nlohmann::json{{"dropped", 0}}));
}

TEST_F(CacheRoutesTest, AListingIsAsLongAsAsked) {
  settings.cache.min_uses = 1;
  start_with_cache();
  for (const char* text : {"a", "b", "c"}) {
    for (int i = 0; i < 2; ++i) {
      post("/v1/completions", {{"prompt", std::string(60, *text)}, {"max_tokens", 1}});
    }
  }
  const nlohmann::json all = get("/v1/cache").json();
  const size_t stored = all.at("entries").size();
  ASSERT_GE(stored, 3u) << all;
  EXPECT_EQ(all.at("num_entries"), stored);
  EXPECT_EQ(get("/v1/cache?limit=1000").json().at("entries").size(), stored);
  const nlohmann::json two = get("/v1/cache?limit=2").json();
  EXPECT_EQ(two.at("entries").size(), 2u);
  EXPECT_EQ(two.at("entries").at(0).at("id"), all.at("entries").at(0).at("id"));
  EXPECT_EQ(two.at("num_entries"), stored);
  EXPECT_EQ(get("/v1/cache?limit=0").json().at("entries").size(), 0u);
  for (const char* limit : {"", "-1", "1001", "1x", "99999999999", "+5", "2&limit=x"}) {
    const Response response = get(std::string("/v1/cache?limit=") + limit);
    EXPECT_EQ(response.status, 400) << limit;
    EXPECT_NE(response.body.find("0 to 1000"), std::string::npos) << response.body;
  }
  EXPECT_EQ(get("/v1/cache?limt=2").status, 400);
}

TEST_F(CacheRoutesTest, ADeleteForgetsProbesOnlyWhenAsked) {
  start();
  const auto drop_with = [&](const char* query) {
    return exchange(make_request("DELETE", std::string("/v1/cache") + query));
  };
  EXPECT_EQ(drop_with("?forget=probes").status, 200);
  for (const char* query : {"?forget=all", "?forget", "?x=probes", "?forget=probes&y=1"}) {
    const Response response = drop_with(query);
    EXPECT_EQ(response.status, 400) << query;
    EXPECT_NE(response.body.find("forget=probes"), std::string::npos) << response.body;
  }
}

TEST_F(CacheRoutesTest, DeterministicRequestsReuseNothing) {
  start_with_cache();
  for (const char* question : {"one", "two"}) ask(question);
  const nlohmann::json answer = ask("three", {{"deterministic", true}});
  EXPECT_EQ(answer.at("diffusion").at("cache"), "off");
  for (const auto& [field, value] : std::map<std::string, nlohmann::json>{
           {"cache", {{"policy", "full"}}}, {"intra_cache", "dual"}}) {
    const Response response =
        post("/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", "x"}}}},
                                      {"deterministic", true},
                                      {field, value}});
    EXPECT_EQ(response.status, 400) << field;
    EXPECT_EQ(response.error_param().substr(0, field.size()), field);
  }
}

TEST_F(CacheRoutesTest, TheMethodsOfAPathAreNamed) {
  start();
  const Response response = post("/v1/cache", nlohmann::json::object());
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.error_code(), "method_not_allowed");
  EXPECT_EQ(response.headers.at("allow"), "GET, HEAD, DELETE");
  EXPECT_EQ(exchange(make_request("HEAD", "/v1/cache")).status, 200);
  EXPECT_EQ(exchange(make_request("DELETE", "/v1/cache/7")).status, 404);
  EXPECT_EQ(exchange("DELETE /v1/cache HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").status,
            200);
}

TEST_F(CacheRoutesTest, ADeleteKeepsTheConnection) {
  start();
  RawClient client(port);
  client.send(
      "DELETE /v1/cache HTTP/1.1\r\nHost: x\r\n\r\nDELETE /v1/cache HTTP/1.1\r\nHost: "
      "x\r\nContent-Length: 0\r\n\r\n"
      "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string all = client.read_all();
  EXPECT_NE(all.find("\"dropped\""), all.rfind("\"dropped\"")) << all;
  EXPECT_NE(all.find("\"bicached\""), std::string::npos) << all;
}

TEST_F(CacheRoutesTest, OnlyKeysLetIn) {
  const std::string path = testing::TempDir() + "bicached_cache_keys_" + std::to_string(::getpid());
  std::ofstream(path) << "alpha-1\n";
  settings.server.api_key_file = path;
  start();
  std::remove(path.c_str());
  for (const char* method : {"GET", "DELETE"}) {
    EXPECT_EQ(exchange(make_request(method, "/v1/cache")).error_code(), "invalid_api_key");
    const auto with_key =
        make_request(method, "/v1/cache", "", {{"Authorization", "Bearer alpha-1"}});
    EXPECT_EQ(exchange(with_key).status, 200) << method;
  }
}

TEST_F(CacheRoutesTest, BeforeTheModelIsLoadedItSaysSo) {
  settings.server.port = 0;
  HttpServer early(settings);
  port = early.bind();
  std::thread runner([&] { early.run(); });
  EXPECT_EQ(get("/v1/cache").error_code(), "not_ready");
  EXPECT_EQ(drop().error_code(), "not_ready");
  early.stop();
  runner.join();
}

TEST_F(CacheRoutesTest, AfterTheEngineHasStoppedItIsDraining) {
  start();
  engine->stop(std::chrono::milliseconds(0));
  for (const Response& response : {get("/v1/cache"), drop()}) {
    EXPECT_EQ(response.status, 503);
    EXPECT_EQ(response.error_code(), "draining");
    EXPECT_EQ(response.headers.count("retry-after"), 1u);
  }
}

TEST_F(CacheRoutesTest, UsageTellsWhatWasTakenFromTheCache) {
  start_with_cache();
  const nlohmann::json first = ask("one");
  EXPECT_EQ(first.at("usage").at("prompt_tokens_details").at("cached_tokens"), 0);
  EXPECT_EQ(first.at("diffusion").at("cache"), "miss");
  ask("two");
  const nlohmann::json third = ask("three");
  EXPECT_EQ(third.at("usage").at("prompt_tokens_details").at("cached_tokens"), kPrefixTokens);
  EXPECT_EQ(third.at("diffusion").at("cache"), "hit");
  EXPECT_EQ(third.at("diffusion").at("prefix_len"), kPrefixTokens);
  EXPECT_EQ(third.at("diffusion").at("depth"), 2);
  const nlohmann::json off = ask("four", {{"cache", {{"policy", "off"}}}});
  EXPECT_EQ(off.at("diffusion").at("cache"), "off");
  EXPECT_EQ(off.at("usage").at("prompt_tokens_details").at("cached_tokens"), 0);
}

TEST_F(CacheRoutesTest, TheReportAndTheMetricsFollow) {
  start_with_cache();
  for (const char* question : {"one", "two", "three"}) ask(question);
  const nlohmann::json report = get("/v1/cache").json();
  EXPECT_EQ(report.at("policy"), "fixed");
  EXPECT_EQ(report.at("budget_bytes"), settings.cache.budget_bytes());
  ASSERT_EQ(report.at("entries").size(), 1u);
  const nlohmann::json& entry = report["entries"][0];
  EXPECT_EQ(entry.at("tokens"), kPrefixTokens);
  EXPECT_EQ(entry.at("hits"), 2);
  EXPECT_EQ(entry.at("in_use"), 0);
  EXPECT_EQ(entry.at("ready"), true);
  EXPECT_EQ(entry.at("pinned"), false);
  EXPECT_EQ(entry.at("depths"), (std::vector<int>{2}));
  EXPECT_GT(entry.at("saved_row_layers"), 0);
  EXPECT_EQ(report.at("bytes"), entry.at("bytes"));
  const std::string metrics = get("/metrics").body;
  for (const char* line :
       {"bicached_cache_entries 1", "bicached_cache_hits_total 2", "bicached_cache_misses_total 1",
        "bicached_cache_entries_made_total 1", "bicached_cached_tokens_total 136",
        "bicached_cache_depth_count{model=\"fake\"} 2",
        "bicached_cache_depth_bucket{model=\"fake\",le=\"1\"} 0",
        "bicached_cache_depth_bucket{model=\"fake\",le=\"2\"} 2"}) {
    EXPECT_NE(metrics.find(line), std::string::npos) << line;
  }
}

TEST_F(CacheRoutesTest, ADroppedPrefixHasToBeSharedAgain) {
  start_with_cache();
  for (const char* question : {"one", "two"}) ask(question);
  EXPECT_EQ(drop().json(), (nlohmann::json{{"dropped", 1}}));
  EXPECT_EQ(get("/v1/cache").json().at("entries").size(), 0u);
  EXPECT_EQ(ask("three").at("diffusion").at("cache"), "miss");
  EXPECT_EQ(ask("four").at("diffusion").at("cache"), "hit");
}

TEST_F(CacheRoutesTest, APolicyWithoutItsTableIsRefused) {
  start_with_cache();
  const Response response = post(
      "/v1/chat/completions",
      {{"messages", {{{"role", "user"}, {"content", "x"}}}}, {"cache", {{"policy", "table"}}}});
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.error_param(), "cache.policy");
}

}  // namespace
}  // namespace bicached
