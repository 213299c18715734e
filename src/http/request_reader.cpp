#include "http/request_reader.h"

#include <algorithm>
#include <utility>

#include "base/free_memory.h"

namespace bicached {

size_t RequestReader::read(std::string_view bytes) {
  size_t taken = 0;
  if (phase_ == Phase::kIdle || phase_ == Phase::kHead) taken = read_head_bytes(bytes);
  if (phase_ == Phase::kBody) taken += read_body_bytes(bytes.substr(taken));
  return taken;
}

size_t RequestReader::read_head_bytes(std::string_view bytes) {
  // Empty lines before a request line are no request (RFC 9112, 2.2).
  size_t begin = 0;
  while (phase_ == Phase::kIdle && bytes.substr(begin).starts_with("\r\n")) begin += 2;
  const std::string_view rest = bytes.substr(begin);
  if (rest.empty() || rest == "\r") return begin;
  phase_ = Phase::kHead;
  if (!is_http_token(rest.substr(0, 1))) {  // a TLS handshake, for one: it waits for an answer
    refuse(bad_request("this is no HTTP request; the server speaks HTTP without TLS"));
    return begin;
  }
  const std::optional<size_t> size = find_head_end(rest);
  if (!size || *size > kMaxHeadBytes) {
    if (rest.size() > kMaxHeadBytes) {
      refuse(
          {431, Error(ErrorCode::kRequestTooLarge, "the request's head is longer than " +
                                                       std::to_string(kMaxHeadBytes) + " bytes")});
    }
    return begin;
  }
  read_whole_head(rest.substr(0, *size));
  return begin + *size;
}

void RequestReader::read_whole_head(std::string_view text) {
  if (std::optional<HttpRefusal> refusal = read_head(text, request_.head)) {
    return refuse(std::move(*refusal));
  }
  try {
    check_head_(request_);
  } catch (const Error& error) {
    return refuse({0, error});
  }
  const RequestHead& head = request_.head;
  if (std::optional<HttpRefusal> refusal = check_body_length(head, max_body_bytes_)) {
    return refuse(std::move(*refusal));
  }
  const int64_t length = head.content_length.value_or(0);
  if (head.is_chunked) chunks_.emplace(max_body_bytes_);
  const bool has_body = head.is_chunked || length > 0;
  owes_continue_ = has_body && head.expects_continue && !head.is_http_1_0;
  phase_ = has_body ? Phase::kBody : Phase::kArrived;
}

size_t RequestReader::read_body_bytes(std::string_view bytes) {
  if (!bytes.empty()) owes_continue_ = false;
  if (chunks_) {
    const size_t taken = chunks_->read(bytes, request_.body);
    if (chunks_->refusal()) {
      refuse(*chunks_->refusal());
    } else if (chunks_->is_done()) {
      phase_ = Phase::kArrived;
    }
    return taken;
  }
  const size_t left = static_cast<size_t>(*request_.head.content_length) - request_.body.size();
  const size_t taken = std::min(left, bytes.size());
  request_.body.append(bytes.substr(0, taken));
  if (taken == left) phase_ = Phase::kArrived;
  return taken;
}

bool RequestReader::takes_continue() { return std::exchange(owes_continue_, false); }

void RequestReader::refuse(HttpRefusal refusal) {
  free_text(request_.body);
  request_.refusal = std::move(refusal);
  phase_ = Phase::kArrived;
}

ArrivedRequest RequestReader::take() {
  phase_ = Phase::kIdle;
  chunks_.reset();
  owes_continue_ = false;
  return std::exchange(request_, {});
}

}  // namespace bicached
