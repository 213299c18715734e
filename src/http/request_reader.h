#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "http/chunked_body.h"
#include "http/request_head.h"

namespace bicached {

/// A request that has arrived: whole, or refused before it was.
struct ArrivedRequest {
  RequestHead head;
  std::string body;
  std::string tenant;  // whose key it came with, see ApiKeys
  std::optional<HttpRefusal> refusal;
};

/// Puts a connection's bytes together to requests, one after the other.
class RequestReader {
 public:
  /// What a head alone decides (route, key): fills `tenant`, or throws Error.
  using CheckHead = std::function<void(ArrivedRequest&)>;
  enum class Phase { kIdle, kHead, kBody, kArrived };

  RequestReader(int64_t max_body_bytes, const CheckHead& check_head)
      : max_body_bytes_(max_body_bytes), check_head_(check_head) {}

  /// Takes what belongs to the request off the front of `bytes`; returns how much that was.
  size_t read(std::string_view bytes);
  Phase phase() const { return phase_; }
  /// Whether the client waits for "100 Continue" before it sends the body; says so once.
  bool takes_continue();
  size_t num_body_bytes() const { return request_.body.size(); }

  bool is_refused() const { return request_.refusal.has_value(); }

  /// Ends an unfinished request.
  void refuse(HttpRefusal refusal);
  /// The request that arrived; from now on the next one is read.
  ArrivedRequest take();

 private:
  size_t read_head_bytes(std::string_view bytes);
  size_t read_body_bytes(std::string_view bytes);
  void read_whole_head(std::string_view text);

  const int64_t max_body_bytes_;
  const CheckHead& check_head_;
  Phase phase_ = Phase::kIdle;
  ArrivedRequest request_;
  std::optional<ChunkedBody> chunks_;
  bool owes_continue_ = false;
};

}  // namespace bicached
