#include "http/request_head.h"

#include <gtest/gtest.h>

#include "http/errors.h"
#include "http/request_id.h"

namespace bicached {
namespace {

constexpr int64_t kMaxBody = 1000;

/// 0: accepted.
int status_of(const std::string& text) {
  RequestHead head;
  auto refusal = read_head(text, head);
  if (!refusal) refusal = check_body_length(head, kMaxBody);
  if (!refusal) return 0;
  return refusal->status != 0 ? refusal->status : describe_error(refusal->error.code()).status;
}

RequestHead head_of(const std::string& text) {
  RequestHead head;
  const auto refusal = read_head(text, head);
  EXPECT_FALSE(refusal) << text << (refusal ? refusal->error.what() : "");
  return head;
}

std::string get_with(const std::string& headers) {
  return "GET /health HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n";
}

std::string post_with(const std::string& headers) {
  return "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n";
}

TEST(HeadTest, EndsWithTheEmptyLine) {
  EXPECT_FALSE(find_head_end("GET / HTTP/1.1\r\nHost: x\r\n"));
  EXPECT_EQ(find_head_end("GET / HTTP/1.1\r\n\r\nbody"), 18u);
  EXPECT_EQ(find_head_end("GET / HTTP/1.1\n\nbody"), 16u);  // refused, and at once
}

TEST(HeadTest, ConnectionAndExpectAreReadInAnyCase) {
  for (const char* close : {"close", "Close", "CLOSE", "keep-alive, Close", "x , close"}) {
    EXPECT_FALSE(head_of(get_with(std::string("Connection: ") + close + "\r\n")).keeps_alive)
        << close;
  }
  EXPECT_FALSE(head_of(get_with("Connection: x\r\nConnection: close\r\n")).keeps_alive);
  EXPECT_TRUE(head_of(get_with("Connection: closed\r\n")).keeps_alive);
  for (const char* keep : {"keep-alive", "Keep-Alive", "KEEP-ALIVE"}) {
    const std::string text = std::string("GET / HTTP/1.0\r\nConnection: ") + keep + "\r\n\r\n";
    EXPECT_TRUE(head_of(text).keeps_alive) << keep;
  }
  EXPECT_FALSE(head_of("GET / HTTP/1.0\r\n\r\n").keeps_alive);
  for (const char* expect : {"100-continue", "100-Continue", "100-CONTINUE"}) {
    EXPECT_TRUE(head_of(post_with(std::string("Content-Length: 2\r\nExpect: ") + expect + "\r\n"))
                    .expects_continue)
        << expect;
  }
  EXPECT_FALSE(head_of(post_with("Content-Length: 2\r\n")).expects_continue);
}

TEST(HeadTest, TargetsMayBeAbsolute) {
  const std::pair<const char*, const char*> cases[] = {
      {"/a?b", "/a?b"},
      {"http://host/a?b", "/a?b"},
      {"HTTP://host:8080/", "/"},
      {"https://[::1]:1/a", "/a"},
      {"http://host", "/"},
      {"http://host?b", "/?b"},
      {"*", "*"},
  };
  for (const auto& [target, path] : cases) {
    EXPECT_EQ(head_of(std::string("OPTIONS ") + target + " HTTP/1.1\r\nHost: x\r\n\r\n").target,
              path);
  }
  EXPECT_EQ(status_of("GET ftp://host/a HTTP/1.1\r\nHost: x\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET health HTTP/1.1\r\nHost: x\r\n\r\n"), 400);
}

TEST(HeadTest, ThereIsOneHost) {
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n"), 400);
  for (const char* bad : {"a b", "a,b", "a/b", "user@a", "a\"b"}) {
    EXPECT_EQ(status_of(std::string("GET / HTTP/1.1\r\nHost: ") + bad + "\r\n\r\n"), 400) << bad;
  }
  for (const char* good : {"", "a", "a.b:80", "[::1]:8080", "127.0.0.1"}) {
    EXPECT_EQ(status_of(std::string("GET / HTTP/1.1\r\nHost: ") + good + "\r\n\r\n"), 0) << good;
  }
  EXPECT_EQ(status_of("GET / HTTP/1.0\r\n\r\n"), 0);
}

TEST(HeadTest, AMinorVersionToComeIsReadAsTheOneThatIsKnown) {
  EXPECT_EQ(status_of("GET / HTTP/1.2\r\nHost: x\r\n\r\n"), 0);
  for (const char* version : {"HTTP/2.0", "HTTP/1.", "HTTP/1.10", "HTTP/1.x", "http/1.1"}) {
    EXPECT_EQ(status_of(std::string("GET / ") + version + "\r\nHost: x\r\n\r\n"), 400) << version;
  }
}

TEST(HeadTest, OnlyPlainBodiesAreRead) {
  for (const char* plain : {"identity", "Identity", "identity, identity", ""}) {
    EXPECT_EQ(status_of(post_with(std::string("Content-Length: 2\r\nContent-Encoding: ") + plain +
                                  "\r\n")),
              0);
  }
  for (const char* coded : {"gzip", "br", "identity, gzip"}) {
    EXPECT_EQ(status_of(post_with(std::string("Content-Length: 2\r\nContent-Encoding: ") + coded +
                                  "\r\n")),
              415);
  }
  EXPECT_EQ(status_of("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
}

TEST(FramingTest, AcceptsWhatIsBeyondDoubt) {
  EXPECT_EQ(status_of("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), 0);
  EXPECT_EQ(status_of("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"), 0);
  EXPECT_EQ(status_of(post_with("Content-Length: 0\r\n")), 0);
  EXPECT_EQ(status_of(post_with("content-length:  1000 \r\n")), 0);
  EXPECT_EQ(status_of(post_with("Transfer-Encoding: chunked\r\n")), 0);
  EXPECT_EQ(status_of(post_with("Transfer-Encoding: Chunked\r\n")), 0);
}

TEST(FramingTest, RefusesEverythingElse) {
  const std::pair<const char*, int> cases[] = {
      {"", 411},
      {"Content-Length: 1001\r\n", 413},
      {"Content-Length: 999999999999999999\r\n", 413},
      {"Content-Length: 9999999999999999999\r\n", 400},
      {"Content-Length: -1\r\n", 400},
      {"Content-Length: +5\r\n", 400},
      {"Content-Length: 0x5\r\n", 400},
      {"Content-Length: 5, 5\r\n", 400},
      {"Content-Length:\r\n", 400},
      {"Content-Length: 5\r\nContent-Length: 5\r\n", 400},
      {"Content-Length: 5\r\nContent-Length: 6\r\n", 400},
      {"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400},
      {"Transfer-Encoding: gzip, chunked\r\n", 400},
      {"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400},
      {"Transfer-Encoding: identity\r\n", 400},
      {"Transfer-Encoding : chunked\r\n", 400},
      {"Transfer-Encoding:\r\n chunked\r\n", 400},
      {"Content-Length: 5\r\n folded: x\r\n", 400},
      {"no colon\r\n", 400},
      {"a\nb: c\r\nContent-Length: 5\r\n", 400},
      {"a: b\rc\r\nContent-Length: 5\r\n", 400},
  };
  for (const auto& [headers, status] : cases)
    EXPECT_EQ(status_of(post_with(headers)), status) << headers;
  EXPECT_EQ(status_of(post_with(std::string("a: \0b\r\n", 7))), 400);
}

TEST(FramingTest, ABodyThatAMethodHasNoUseForIsNoMistake) {
  for (const char* method : {"GET", "HEAD", "DELETE", "OPTIONS"}) {
    const std::string line = std::string(method) + " /health HTTP/1.1\r\nHost: x\r\n";
    EXPECT_EQ(status_of(line + "\r\n"), 0) << method;
    EXPECT_EQ(status_of(line + "Content-Length: 1\r\n\r\n"), 0) << method;
    EXPECT_EQ(status_of(line + "Content-Length: 1001\r\n\r\n"), 413) << method;
    EXPECT_EQ(status_of(line + "Transfer-Encoding: chunked\r\n\r\n"), 0) << method;
  }
}

TEST(FramingTest, RefusesRequestLinesThatCouldBeSplitInTwoWays) {
  for (const char* line :
       {"", "GET", "GET /", "GET  / HTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1",
        "GET / a HTTP/1.1", "GET / HTTP/2", "G@T / HTTP/1.1", "GET\t/ HTTP/1.1"}) {
    EXPECT_EQ(status_of(std::string(line) + "\r\n\r\n"), 400) << line;
  }
}

TEST(FramingTest, RefusesTooManyAndTooLongHeaders) {
  std::string many;
  for (int i = 0; i < 101; ++i) many += "a: b\r\n";
  EXPECT_EQ(status_of(post_with(many)), 431);
  EXPECT_EQ(status_of(post_with("a: " + std::string(9000, 'b') + "\r\n")), 431);
  EXPECT_EQ(status_of("GET /" + std::string(9000, 'b') + " HTTP/1.1\r\n\r\n"), 414);
}

TEST(RequestIdTest, TakesOnlyHarmlessIds) {
  RequestIds ids;
  EXPECT_EQ(ids.accept_or_make("Abc-1.2_3"), "Abc-1.2_3");
  for (const std::string& bad : {std::string(), std::string("a b"), std::string("a\r\nb: c"),
                                 std::string(129, 'a'), std::string("\xc3\xa4")}) {
    const std::string made = ids.accept_or_make(bad);
    EXPECT_NE(made, bad);
    EXPECT_EQ(ids.accept_or_make(made), made);
  }
  EXPECT_NE(ids.make(), ids.make());
}

}  // namespace
}  // namespace bicached
