#include <cstdio>
#include <fstream>

#include "http/server_fixture.h"

namespace bicached {
namespace {

class CacheRoutesTest : public ServerTest {
 protected:
  Response drop() { return exchange(make_request("DELETE", "/v1/cache")); }
};

TEST_F(CacheRoutesTest, AnEmptyCacheIsReported) {
  start();
  const Response response = get("/v1/cache");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.json().at("entries").size(), 0u);
  EXPECT_EQ(response.json().at("bytes"), 0);
  EXPECT_EQ(drop().json(), (nlohmann::json{{"dropped", 0}}));
}

TEST_F(CacheRoutesTest, TheMethodsOfAPathAreNamed) {
  start();
  const Response response = post("/v1/cache", nlohmann::json::object());
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.error_code(), "method_not_allowed");
  EXPECT_EQ(response.headers.at("allow"), "GET, HEAD, DELETE");
  EXPECT_EQ(exchange(make_request("HEAD", "/v1/cache")).status, 200);
  EXPECT_EQ(exchange(make_request("DELETE", "/v1/cache/7")).status, 404);
  EXPECT_EQ(exchange("DELETE /v1/cache HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}").status, 400);
}

TEST_F(CacheRoutesTest, ADeleteKeepsTheConnection) {
  start();
  RawClient client(port);
  client.send(
      "DELETE /v1/cache HTTP/1.1\r\n\r\nDELETE /v1/cache HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
      "GET /version HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string all = client.read_all();
  EXPECT_NE(all.find("\"dropped\""), all.rfind("\"dropped\"")) << all;
  EXPECT_NE(all.find("\"bicached\""), std::string::npos) << all;
}

TEST_F(CacheRoutesTest, OnlyKeysLetIn) {
  const std::string path = testing::TempDir() + "bicached_cache_keys";
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

}  // namespace
}  // namespace bicached
