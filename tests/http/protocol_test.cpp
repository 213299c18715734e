// HTTP as the standards have it, over real sockets.
#include <sys/socket.h>

#include <algorithm>

#include <unistd.h>

#include "http/server_fixture.h"

namespace bicached {
namespace {

using Clock = std::chrono::steady_clock;

class ProtocolTest : public ServerTest {
 protected:
  static constexpr const char* kChat = "/v1/chat/completions";

  static std::string head(const std::string& line, const std::string& headers = "") {
    return line + " HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n";
  }
  static std::string post_request(const std::string& path, const std::string& body,
                                  const std::string& headers, const char* version = "HTTP/1.1") {
    return "POST " + path + " " + version +
           "\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + headers +
           "\r\n" + body;
  }
  std::string all_of(const std::string& bytes) {
    RawClient client(port);
    client.send(bytes);
    return client.read_all();
  }
  static size_t count(const std::string& text, const std::string& part) {
    size_t found = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
      ++found;
    return found;
  }
};

TEST_F(ProtocolTest, CloseIsUnderstoodInAnyCase) {
  settings.server.keep_alive_ms = 600000;
  start();
  for (const char* close : {"close", "Close", "CLOSE", "TE, close"}) {
    const std::string answer =
        all_of(head("GET /health", std::string("Connection: ") + close + "\r\n"));
    EXPECT_EQ(parse_response(answer).headers.at("connection"), "close") << close;
  }
}

TEST_F(ProtocolTest, TheEndOfAnIdleConnectionIsAsAnnounced) {
  settings.server.keep_alive_ms = 1700;
  start();
  RawClient client(port);
  client.send(head("GET /health"));
  const auto begin = Clock::now();
  const Response response = parse_response(client.read_all());
  EXPECT_EQ(response.headers.at("keep-alive"), "timeout=1");
  EXPECT_GE(Clock::now() - begin, std::chrono::seconds(1));
}

TEST_F(ProtocolTest, ContinueIsSaidInAnyCase) {
  start();
  for (const char* expect : {"100-continue", "100-Continue"}) {
    RawClient client(port);
    const std::string body = R"({"content":"ab"})";
    const std::string all = post_request(
        "/tokenize", body, std::string("Connection: close\r\nExpect: ") + expect + "\r\n");
    client.send(all.substr(0, all.size() - body.size()));
    const std::string first = client.read_until(
        [](const std::string& got) { return got.find("\r\n\r\n") != std::string::npos; });
    EXPECT_TRUE(first.starts_with("HTTP/1.1 100 Continue\r\n\r\n")) << first;
    client.send(body);
    EXPECT_NE(client.read_all().find("\"count\":2"), std::string::npos);
  }
  // Refused by its head: no 100, and the body is not waited for.
  const std::string refused = all_of(
      "POST /nothing HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n");
  EXPECT_TRUE(refused.starts_with("HTTP/1.1 404")) << refused;
}

TEST_F(ProtocolTest, AbsoluteTargetsAreTaken) {
  start();
  EXPECT_EQ(parse_response(all_of(head("GET http://x/health", "Connection: close\r\n"))).status,
            200);
  EXPECT_EQ(
      parse_response(all_of(head("GET http://x/v1/models/demo", "Connection: close\r\n"))).status,
      200);
}

TEST_F(ProtocolTest, OldClientsGetNoChunks) {
  start();
  nlohmann::json body = chat_body();
  body["stream"] = true;
  for (const char* connection : {"", "Connection: keep-alive\r\n"}) {
    const std::string answer = all_of(post_request(kChat, body.dump(), connection, "HTTP/1.0"));
    const Response response = parse_response(answer);
    EXPECT_EQ(answer.find("Transfer-Encoding"), std::string::npos) << answer;
    EXPECT_EQ(count(answer, "Connection: "), 1u) << answer;
    EXPECT_EQ(response.headers.at("connection"), "close") << answer;
    EXPECT_TRUE(response.body.starts_with("data: ")) << answer;
    EXPECT_TRUE(parse_events(response.body).done) << answer;
  }
  EXPECT_EQ(
      count(all_of("GET /health HTTP/1.0\r\n\r\nGET /health HTTP/1.0\r\n\r\n"), "HTTP/1.1 200"),
      1u);
  const std::string kept =
      all_of("GET /health HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\nGET /health HTTP/1.0\r\n\r\n");
  EXPECT_EQ(count(kept, "HTTP/1.1 200"), 2u);
  EXPECT_NE(kept.find("Connection: keep-alive"), std::string::npos);
}

TEST_F(ProtocolTest, EmptyLinesBetweenRequestsAreIgnored) {
  start();
  const std::string answers = all_of(post_request("/tokenize", R"({"content":"ab"})", "") +
                                     "\r\n\r\n" + head("GET /health", "Connection: close\r\n"));
  EXPECT_EQ(count(answers, "HTTP/1.1 200"), 2u) << answers;
}

TEST_F(ProtocolTest, NothingMayStandBehindTheJson) {
  start();
  for (const std::string& behind : {std::string("\0", 1), std::string("\0 and more", 10),
                                    std::string("x"), std::string("{}")}) {
    EXPECT_EQ(post_text("/tokenize", R"({"content":"a"})" + behind).status, 400) << behind;
    EXPECT_EQ(post_text(kChat, chat_body().dump() + behind).status, 400) << behind;
  }
  EXPECT_EQ(post_text("/tokenize", R"({"content":"a"})" + std::string("\r\n \t")).status, 200);
}

TEST_F(ProtocolTest, PlainContentEncodingIsTaken) {
  start();
  EXPECT_EQ(post_text("/tokenize", R"({"content":"a"})", {{"Content-Encoding", "identity"}}).status,
            200);
  EXPECT_EQ(post_text("/tokenize", R"({"content":"a"})", {{"Content-Encoding", "br"}}).status, 415);
}

TEST_F(ProtocolTest, WhoHasDoneSendingGetsTheAnswer) {
  control->forward_ms = 20;
  control->end_one_in = 0;
  start();
  for (const bool streamed : {true, false}) {
    nlohmann::json body = chat_body();
    body["stream"] = streamed;
    RawClient client(port);
    client.send_and_end(make_request("POST", kChat, body.dump()));
    const Response response = parse_response(client.read_all());
    EXPECT_EQ(response.status, 200);
    EXPECT_TRUE(streamed ? parse_events(response.body).done : response.json().contains("usage"));
  }
  RawClient quick(port);
  quick.send_and_end(head("GET /health"));
  EXPECT_EQ(parse_response(quick.read_all()).status, 200);
}

TEST_F(ProtocolTest, WhoClosesLaterIsGoneUnlessAStreamIsStillRead) {
  control->forward_ms = 20;
  control->end_one_in = 0;
  start();
  nlohmann::json body = chat_body();
  body["stream"] = true;
  RawClient streaming(port);
  streaming.send(make_request("POST", kChat, body.dump()));
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  streaming.end_sending();
  EXPECT_TRUE(parse_events(parse_response(streaming.read_all()).body).done);
  // Of a plain answer nothing can be sent before it is there: the work ends, and nothing is said.
  RawClient plain(port);
  body["stream"] = false;
  body["max_tokens"] = 1000;
  plain.send(make_request("POST", kChat, body.dump()));
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  plain.end_sending();
  EXPECT_EQ(plain.read_all(), "");
  EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; }));
}

TEST_F(ProtocolTest, WhoIsGoneEndsTheWorkWhateverWasSentBehindTheRequest) {
  control->forward_ms = 5;
  control->end_one_in = 0;
  start();
  for (const bool streamed : {true, false}) {
    nlohmann::json body = chat_body();
    body["stream"] = streamed;
    body["max_tokens"] = 1000;
    RawClient client(port);
    client.send(make_request("POST", kChat, body.dump()) + "G");
    EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 1; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    client.close();
    EXPECT_TRUE(eventually([&] { return control->num_open_slabs == 0; })) << streamed;
  }
}

TEST_F(ProtocolTest, SeveralAddressesAnswer) {
  settings.server.host = {"127.0.0.1", testing::TempDir() + "bicached_protocol_" +
                                           std::to_string(::getpid()) + ".sock"};
  start();
  EXPECT_EQ(get("/health").status, 200);
  RawClient client(settings.server.host[1]);
  client.send(make_request("POST", kChat, chat_body().dump()));
  EXPECT_EQ(parse_response(client.read_all()).status, 200);
}

}  // namespace
}  // namespace bicached
