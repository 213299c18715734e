// tokenizer.json; one that is accepted encodes and decodes a text of every sort.
#include "bicached/tokenizer.h"
#include "fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bicached;
  static const Folder folder;
  folder.write("tokenizer.json", text_of(data, size));
  refuse_or([&] {
    const auto tokenizer = Tokenizer::load(folder.path());
    for (const bool trusted : {false, true}) {
      const auto ids =
          tokenizer->encode("a b\n\t 12 <s>\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80 it's\xFF", trusted);
      for (const TokenId id : ids) require(id >= 0 && id < tokenizer->vocab_size(), "ids are ids");
      tokenizer->decode(tokenizer->add_special(ids), trusted);
    }
  });
  return 0;
}
