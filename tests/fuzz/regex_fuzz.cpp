// A tokenizer's pattern, and behind the first line break a text that it splits.
#include "base/utf8.h"
#include "fuzz/fuzz_target.h"
#include "text/regex_split.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bicached;
  const std::string_view input = text_of(data, size);
  const size_t end = std::min(input.find('\n'), input.size());
  const std::string_view text = input.substr(std::min(end + 1, input.size()));
  if (!is_valid_utf8(text)) return 0;  // the tokenizer splits none of that
  refuse_or([&] {
    const RegexSplit split{std::string(input.substr(0, end))};
    std::vector<std::string_view> pieces;
    split.split(text, pieces);
    std::string joined;
    for (const std::string_view piece : pieces) joined += piece;
    require(joined == text, "pieces are the text");
  });
  return 0;
}
