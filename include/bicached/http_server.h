#pragma once

#include <memory>
#include <string>

#include "bicached/chat_template.h"
#include "bicached/engine.h"
#include "bicached/settings.h"
#include "bicached/tokenizer.h"

namespace bicached {

/// What requests are answered with, once the model is loaded. All outlive the server.
struct Backend {
  Engine* engine = nullptr;
  const Tokenizer* tokenizer = nullptr;
  /// Null: the model has none, chat is refused with 400.
  const ChatTemplate* chat_template = nullptr;
  DecodeSettings defaults;  // resolved: no -1 and no empty algorithm left
  std::string model_id;     // what /v1/models answers
};

/// More are told to come again.
inline constexpr int kMaxConnections = 4096;

/// The OpenAI HTTP API (docs/api.md) over one engine.
///
/// A fixed thread pool answers requests that have arrived whole. Those that may wait long for the
/// engine take at most queue + running threads of it (more get 429), so that /health and /metrics
/// never wait behind them. `run`'s thread watches all connections that wait for their client, for
/// a request or for it to take a whole answer; they cost no other.
///
/// It listens before the model is loaded (503 `not_ready`), so an operator sees the process early.
class HttpServer {
 public:
  /// `settings.engine` without zeros, as `resolve_engine_defaults` has it.
  explicit HttpServer(const Settings& settings);
  ~HttpServer();

  /// Listens on all addresses and returns the port (the free one it found for port 0). Throws
  /// kInvalidSettings when one can't be bound.
  int bind();
  /// Serves until `stop`; blocks.
  void run();
  /// From now on requests are answered. Once.
  void set_backend(const Backend& backend);
  /// Reads the files with API keys anew. Any thread, one at a time.
  void reload_keys();
  /// /ready fails and new requests get 503 `draining`; running ones go on. Any thread.
  void begin_drain();
  /// Ends `run` once open responses are written. Any thread.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bicached
