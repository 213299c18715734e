// Memory that runs out at any one allocation of the server's threads, and at several in a row.
#include <chrono>
#include <string>

#include "failing_memory.h"
#include "http/server_fixture.h"

namespace bicached {
namespace {

class OutOfMemoryTest : public ServerTest {
 protected:
  OutOfMemoryTest() { failing_memory::spare_this_thread(); }
  ~OutOfMemoryTest() override { failing_memory::end(); }

  /// An answer, whatever it is, or the connection's end. Whether there were so many allocations.
  bool send_with_failures(const std::string& bytes, int64_t num_before, int64_t num_failing) {
    failing_memory::begin(num_before, num_failing);
    const auto start = std::chrono::steady_clock::now();
    {
      RawClient client(port);
      client.send(bytes);
      client.read_all();
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(9)) << "no end came";
    return failing_memory::end();
  }

  /// Each allocation of a request fails in turn; afterwards the same server answers as before.
  void check(const std::string& name, const std::string& bytes) {
    const std::string expected = post("/v1/chat/completions", chat_body()).json()["choices"].dump();
    for (const int64_t num_failing : {1, 3, 30}) {
      int64_t num_before = 0;
      bool has_reached = true;
      for (; has_reached; num_before += num_failing) {
        SCOPED_TRACE(name + ": " + std::to_string(num_failing) + " allocations fail after " +
                     std::to_string(num_before));
        has_reached = send_with_failures(bytes, num_before, num_failing);
        ASSERT_EQ(get("/health").status, 200);
        if (num_before % 16 >= num_failing && has_reached) continue;
        const Response answer = post("/v1/chat/completions", chat_body());
        ASSERT_EQ(answer.status, 200) << answer.body;
        ASSERT_EQ(answer.json()["choices"].dump(), expected);
      }
      EXPECT_GT(num_before, 20);
    }
    EXPECT_TRUE(eventually([&] { return engine->stats().queued == 0; }));
    EXPECT_TRUE(eventually([&] { return engine->stats().running == 0; }));
    EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; }));
  }
};

TEST_F(OutOfMemoryTest, CostsTheRequestAndNoMore) {
#ifdef NDEBUG
  GTEST_SKIP() << "optimised code hides whose an allocation is";
#endif
  settings.engine.integrity_checks = true;
  start();
  nlohmann::json streamed = chat_body();
  streamed["stream"] = true;
  nlohmann::json several = text_body();
  several["n"] = 3;
  several["max_tokens"] = 8;
  check("health", make_request("GET", "/health"));
  check("unknown route", make_request("GET", "/nothing"));
  check("metrics", make_request("GET", "/metrics"));
  check("cache", make_request("GET", "/v1/cache"));
  check("chat", make_request("POST", "/v1/chat/completions", chat_body().dump()));
  check("stream", make_request("POST", "/v1/chat/completions", streamed.dump()));
  check("three choices", make_request("POST", "/v1/completions", several.dump()));
  EXPECT_FALSE(engine->has_failed());
}

}  // namespace
}  // namespace bicached
