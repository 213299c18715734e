// Token ids, two bytes each; tokens are bytes. What is streamed is what is decoded at once.
#include "bicached/tokenizer.h"
#include "fuzz/fuzz_target.h"
#include "http/fake_text.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bicached;
  static const FakeTokenizer tokenizer;
  Reader reader(data, size);
  const bool skips = reader.byte() % 2 == 1;
  Detokenizer detokenizer(tokenizer, skips);
  std::string bytes, streamed;
  while (!reader.is_empty()) {
    const int id = reader.byte() < 240 ? reader.byte() : 250 + reader.byte() % 16;
    bytes += tokenizer.token_bytes(id, skips);
    streamed += detokenizer.push(id);
  }
  streamed += detokenizer.flush();
  // At once, as one token of all bytes.
  class Whole final : public Tokenizer {
   public:
    explicit Whole(std::string bytes) : bytes_(std::move(bytes)) {}
    std::vector<TokenId> encode(std::string_view, bool) const override { return {}; }
    std::vector<TokenId> encode(const std::vector<TextPiece>&) const override { return {}; }
    std::vector<TokenId> add_special(std::vector<TokenId> ids) const override { return ids; }
    std::string decode(const std::vector<TokenId>&, bool) const override { return bytes_; }
    std::string token_bytes(TokenId, bool) const override { return bytes_; }
    std::string token_text(TokenId) const override { return bytes_; }
    int vocab_size() const override { return 1; }
    std::vector<AddedTokenText> added_token_texts() const override { return {}; }

   private:
    std::string bytes_;
  } whole(bytes);
  Detokenizer at_once(whole, skips);
  std::string expected = at_once.push(0);
  expected += at_once.flush();
  require(streamed == expected, "streamed text is the text");
  return 0;
}
