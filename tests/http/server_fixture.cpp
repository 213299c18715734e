#include "http/server_fixture.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "base/log.h"
#include "config/engine_defaults.h"

namespace bicached {

RawClient::RawClient(int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const timeval limit{10, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw std::runtime_error("can't connect");
  }
}

RawClient::RawClient(const std::string& unix_path) : fd_(::socket(AF_UNIX, SOCK_STREAM, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, unix_path.c_str(), sizeof address.sun_path - 1);
  const timeval limit{10, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw std::runtime_error("can't connect");
  }
}

RawClient::~RawClient() { close(); }

void RawClient::send_and_end(const std::string& bytes) {
  const int on = 1;
  ::setsockopt(fd_, IPPROTO_TCP, TCP_CORK, &on, sizeof on);
  send(bytes);
  end_sending();
}

void RawClient::send_some(const std::string& bytes) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t count =
        ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count <= 0) return;
    sent += static_cast<size_t>(count);
  }
}

void RawClient::end_sending() { ::shutdown(fd_, SHUT_WR); }

void RawClient::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void RawClient::send(const std::string& bytes) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t count = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (count <= 0) return;  // the server closed: what it answered is what the test looks at
    sent += static_cast<size_t>(count);
  }
}

bool RawClient::receive() {
  char bytes[4096];
  const ssize_t count = ::recv(fd_, bytes, sizeof bytes, 0);
  if (count <= 0) return false;
  received_.append(bytes, static_cast<size_t>(count));
  return true;
}

std::string Response::error_code() const {
  const nlohmann::json code = json().at("error").at("code");
  return code.is_null() ? "" : code.get<std::string>();
}

std::string Response::error_param() const {
  const nlohmann::json param = json().at("error").at("param");
  return param.is_null() ? "" : param.get<std::string>();
}

Response parse_response(const std::string& bytes) {
  Response response;
  const size_t head_end = bytes.find("\r\n\r\n");
  if (head_end == std::string::npos) return response;
  std::istringstream lines(bytes.substr(0, head_end));
  std::string line;
  std::getline(lines, line);
  response.status = std::stoi(line.substr(9, 3));
  while (std::getline(lines, line)) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    const size_t colon = line.find(": ");
    std::string name = line.substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(), ::tolower);
    response.headers[name] = line.substr(colon + 2);
  }
  std::string body = bytes.substr(head_end + 4);
  if (response.headers["transfer-encoding"] != "chunked") {
    response.body = std::move(body);
    return response;
  }
  for (size_t at = 0; at < body.size();) {
    const size_t line_end = body.find("\r\n", at);
    if (line_end == std::string::npos) break;
    const size_t size = std::stoul(body.substr(at, line_end - at), nullptr, 16);
    if (size == 0) break;
    response.body += body.substr(line_end + 2, size);
    at = line_end + 2 + size + 2;
  }
  return response;
}

std::string make_request(const std::string& method, const std::string& path,
                         const std::string& body,
                         const std::vector<std::pair<std::string, std::string>>& headers) {
  std::string text = method + " " + path + " HTTP/1.1\r\nHost: test\r\nConnection: close\r\n";
  for (const auto& [name, value] : headers) text += name + ": " + value + "\r\n";
  if (method == "POST") text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
  return text + "\r\n" + body;
}

Events parse_events(const std::string& body) {
  Events events;
  std::istringstream lines(body);
  std::string line;
  bool denoise = false;
  while (std::getline(lines, line)) {
    if (line == "event: denoise") denoise = true;
    if (!line.starts_with("data: ")) continue;
    events.done = line == "data: [DONE]";
    if (events.done) continue;
    (denoise ? events.denoise : events.data).push_back(nlohmann::json::parse(line.substr(6)));
    denoise = false;
  }
  return events;
}

std::string Events::text(int index) const {
  std::string text;
  for (const nlohmann::json& chunk : data) {
    for (const nlohmann::json& choice : chunk.value("choices", nlohmann::json::array())) {
      if (choice.at("index") != index) continue;
      text += choice.contains("delta") ? choice["delta"].value("content", "")
                                       : choice.value("text", "");
    }
  }
  return text;
}

std::string Events::finish_reason(int index) const {
  std::string reason;
  for (const nlohmann::json& chunk : data) {
    for (const nlohmann::json& choice : chunk.value("choices", nlohmann::json::array())) {
      if (choice.at("index") == index && choice.at("finish_reason").is_string()) {
        reason = choice["finish_reason"];
      }
    }
  }
  return reason;
}

void ServerTest::start() {
  settings.server.port = 0;
  log_setup("error", "text");
  engine = std::make_unique<Engine>(std::make_unique<FakeDenoiser>(control), settings.engine,
                                    settings.cache);
  settings.engine = resolve_engine_defaults(settings.engine, engine->model());
  engine->start();
  backend.engine = engine.get();
  backend.tokenizer = &tokenizer;
  backend.chat_template = &chat_template;
  backend.defaults.max_tokens = 32;
  backend.defaults.steps = 0;
  backend.defaults.block_length = 8;
  backend.defaults.algorithm = "low_confidence";
  backend.model_id = "demo";
  server = std::make_unique<HttpServer>(settings);
  port = server->bind();
  thread = std::thread([this] { server->run(); });
  server->set_backend(backend);
}

void ServerTest::stop() {
  if (!thread.joinable()) return;
  server->begin_drain();
  engine->stop(std::chrono::milliseconds(0));
  server->stop();
  thread.join();
}

Response ServerTest::exchange(const std::string& bytes) {
  RawClient client(port);
  client.send(bytes);
  return parse_response(client.read_all());
}

Response ServerTest::get(const std::string& path) { return exchange(make_request("GET", path)); }

Response ServerTest::post_text(const std::string& path, const std::string& body,
                               const std::vector<std::pair<std::string, std::string>>& headers) {
  return exchange(make_request("POST", path, body, headers));
}

Response ServerTest::post(const std::string& path, const nlohmann::json& body) {
  return post_text(path, body.dump());
}

Events ServerTest::stream(const std::string& path, nlohmann::json body) {
  body["stream"] = true;
  return parse_events(post(path, body).body);
}

nlohmann::json ServerTest::chat_body(const std::string& text) {
  return {
      {"model", "demo"}, {"messages", {{{"role", "user"}, {"content", text}}}}, {"max_tokens", 32}};
}

nlohmann::json ServerTest::text_body(const std::string& prompt) {
  return {{"model", "demo"}, {"prompt", prompt}};
}

}  // namespace bicached
