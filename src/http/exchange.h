#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace bicached {

/// What is known of who waits for the answer.
enum class ClientState {
  kThere,
  kSendsNoMore,  // of a stream: has closed its side, and is gone or still reads
  kGone,
};

/// A request as the routes see it, whatever the HTTP library.
struct HttpRequest {
  std::string id;  // x-request-id, checked or made by us
  std::string method;
  std::string path;
  std::multimap<std::string, std::string> query;
  std::string body;
  std::string tenant;  // goes before every salt: requests of two tenants share no prefix
  std::function<ClientState(bool is_streamed)> client_state;
  /// To be called when the body has been read: it goes, and others may be read.
  std::function<void()> release_body;
};

/// A reply that is not sent, since its client is gone.
inline constexpr int kStatusClientGone = 499;

/// For the access log; filled while the answer is made, read after its last byte.
struct AccessNote {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  std::string refusal;  // why the request came to no route
};

/// Sends bytes to the client at once. False: the client is gone.
using WriteBytes = std::function<bool(std::string_view)>;

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  /// Instead of `body`: called once, on the worker's thread, after the headers were sent. Throws
  /// nothing.
  std::function<void(const WriteBytes&)> stream;
  std::shared_ptr<AccessNote> note = std::make_shared<AccessNote>();
};

}  // namespace bicached
