// A request head, and a body in chunks. The chunks read the same however they arrive.
#include "fuzz/fuzz_target.h"
#include "http/chunked_body.h"
#include "http/request_head.h"

namespace {

std::string read_body(std::string_view bytes, size_t step, int64_t max_bytes) {
  bicached::ChunkedBody chunks(max_bytes);
  std::string body;
  size_t taken = 0;
  while (!bytes.empty() && !chunks.is_done() && !chunks.refusal()) {
    const std::string_view part = bytes.substr(0, step);
    const size_t used = chunks.read(part, body);
    bicached::require(used <= part.size(), "no more is taken than is there");
    bicached::require(used == part.size() || chunks.is_done() || chunks.refusal().has_value(),
                      "what is left over is not the body's");
    taken += used;
    bytes.remove_prefix(used);
  }
  bicached::require(static_cast<int64_t>(body.size()) <= max_bytes, "a body has its limit");
  if (chunks.refusal()) return "refused";
  return (chunks.is_done() ? "done " + std::to_string(taken) : std::string("more")) + " " + body;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bicached;
  const std::string_view input = text_of(data, size);
  const size_t end = find_head_end(input).value_or(input.size());
  require(end <= input.size(), "a head ends where it is");
  RequestHead head;
  constexpr int64_t kMostBytes = 4096;
  if (!read_head(input.substr(0, end), head)) {
    require(!head.is_chunked || !head.content_length, "a body has one length");
    const int64_t length = head.content_length.value_or(0);
    require(length >= 0, "a length is none below zero");
    require(length <= kMostBytes || check_body_length(head, kMostBytes), "within the limit");
    require(is_http_token(head.method), "a method is a token");
    for (const auto& [name, value] : head.headers) {
      require(is_http_token(name), "a name is a token");
      require(value.find_first_of(std::string_view("\r\n\0", 3)) == std::string::npos,
              "a value is one line");
    }
  }
  const std::string_view body = input.substr(end);
  const std::string whole = read_body(body, std::string_view::npos, kMostBytes);
  for (const size_t step : {1, 2, 7}) {
    require(read_body(body, step, kMostBytes) == whole, "chunks read the same in pieces");
  }
  return 0;
}
