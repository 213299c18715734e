#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bicached/engine.h"
#include "bicached/http_server.h"
#include "engine/fake_denoiser.h"
#include "http/fake_text.h"

namespace bicached {

/// A connection of a test, without an HTTP library: what is sent is exactly what the test says.
class RawClient {
 public:
  explicit RawClient(int port);
  explicit RawClient(const std::string& unix_path);
  ~RawClient();
  RawClient(const RawClient&) = delete;

  void send(const std::string& bytes);
  /// The end of sending goes in the last packet.
  void send_and_end(const std::string& bytes);
  /// As much as the socket takes now.
  void send_some(const std::string& bytes);
  /// Until `done(all so far)` or the end of the connection or 10 s.
  template <typename Done>
  std::string read_until(Done done) {
    while (!done(received_) && receive()) {
    }
    return received_;
  }
  std::string read_all() {
    return read_until([](const std::string&) { return false; });
  }
  /// Nothing more will be sent; answers are still read.
  void end_sending();
  void close();

 private:
  bool receive();
  int fd_ = -1;
  std::string received_;
};

struct Response {
  int status = 0;                              // 0: the connection ended without one
  std::map<std::string, std::string> headers;  // names in small letters
  std::string body;                            // chunks joined
  nlohmann::json json() const { return nlohmann::json::parse(body); }
  std::string error_code() const;
  std::string error_param() const;
};

Response parse_response(const std::string& bytes);
std::string make_request(const std::string& method, const std::string& path,
                         const std::string& body = "",
                         const std::vector<std::pair<std::string, std::string>>& headers = {});
/// The JSON of every `data:` event but [DONE], and whether that came last.
struct Events {
  std::vector<nlohmann::json> data;
  std::vector<nlohmann::json> denoise;
  bool done = false;
  std::string text(int index = 0) const;
  std::string finish_reason(int index = 0) const;
};
Events parse_events(const std::string& body);

/// A server over a FakeDenoiser on a free port.
class ServerTest : public testing::Test {
 protected:
  ~ServerTest() override { stop(); }

  void start();
  void stop();

  Response get(const std::string& path);
  Response post(const std::string& path, const nlohmann::json& body);
  Response post_text(const std::string& path, const std::string& body,
                     const std::vector<std::pair<std::string, std::string>>& headers = {});
  Response exchange(const std::string& bytes);
  Events stream(const std::string& path, nlohmann::json body);
  static nlohmann::json chat_body(const std::string& text = "hello");
  static nlohmann::json text_body(const std::string& prompt = "hello");

  template <typename Condition>
  static bool eventually(Condition condition) {
    for (int i = 0; i < 5000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  Settings settings;
  Backend backend;
  FakeTokenizer tokenizer;
  FakeTemplate chat_template;
  std::shared_ptr<FakeDenoiser::Control> control = std::make_shared<FakeDenoiser::Control>();
  std::unique_ptr<Engine> engine;
  std::unique_ptr<HttpServer> server;
  std::thread thread;
  int port = 0;
};

}  // namespace bicached
