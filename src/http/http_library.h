#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "http/connection.h"
#include "http/cors.h"
#include "http/exchange.h"

// All that is used of cpp-httplib, in our own words: its header is dear to compile. It takes
// targets apart, writes answers and has the threads. Accepting, waiting and what a request's head
// and body mean are ours (Poller, RequestReader).
namespace bicached {

/// The path of a request's target, decoded.
std::string path_of_target(const std::string& target);
/// "Not Found".
std::string reason_phrase(int status);

/// Threads that take work in the order it came.
class WorkerPool {
 public:
  WorkerPool(int num_threads, size_t max_waiting);
  ~WorkerPool();
  /// False: too much waits.
  bool enqueue(std::function<void()> work);
  /// Ends once all is done.
  void shut_down();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// One request on its connection, to be answered.
struct LibraryRequest {
  Connection& connection;
  const RequestHead& head;
  bool keeps_alive = false;
  int idle_timeout_s = 0;  // announced; 0: not
  HeaderList headers;      // of every answer, the library's own too
  std::function<HttpReply(const std::multimap<std::string, std::string>& query)> handle;
  std::function<void(const HttpReply&)> done;  // the answer is made, of a stream its last byte
};

/// Answers it: a whole answer is sent as far as the client takes it now, and the connection keeps
/// the rest, so that no thread waits for a slow client; a stream's pieces go out as they are made.
/// False: the connection is to be closed.
bool answer_with_library(const LibraryRequest& request);

}  // namespace bicached
