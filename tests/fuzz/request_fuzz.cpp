// The body of a request. Its first byte chooses the route.
#include "bicached/engine.h"
#include "engine/fake_denoiser.h"
#include "fuzz/fuzz_target.h"
#include "http/fake_text.h"
#include "http/job.h"
#include "http/name_log.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bicached;
  static Engine engine(std::make_unique<FakeDenoiser>(std::make_shared<FakeDenoiser::Control>()),
                       EngineSettings{}, CacheSettings{});
  static const FakeTokenizer tokenizer;
  static const FakeTemplate chat_template;
  static const Backend backend = [] {
    Backend made;
    made.engine = &engine;
    made.tokenizer = &tokenizer;
    made.chat_template = &chat_template;
    made.defaults.max_tokens = 64;
    made.defaults.steps = 0;
    made.defaults.block_length = 32;
    made.defaults.algorithm = "threshold";
    made.model_id = "demo";
    return made;
  }();
  static const std::vector<std::string> aliases{"*"};
  static NameLog unknown;
  static const CodecContext context{backend, aliases, 16, unknown};
  static const auto kRoutes = {parse_chat_request,      parse_text_request,
                               parse_fim_request,       parse_infill_request,
                               parse_responses_request, parse_messages_request};
  Reader reader(data, size);
  const auto route = kRoutes.begin()[static_cast<size_t>(reader.byte()) % kRoutes.size()];
  const std::string body(size > 0 ? text_of(data + 1, size - 1) : std::string_view());
  refuse_or([&] {
    const Job job = route(body, context);
    for (const GenerateRequest& canvas : job.canvases) {
      require(canvas.gen_length > 0 || job.is_empty(), "only max_tokens 0 generates nothing");
      require(canvas.decode.block_length > 0, "lengths are lengths");
      for (const TokenId id : canvas.prompt_ids) require(id >= 0 && id < 258, "ids are ids");
    }
  });
  return 0;
}
