#include "app/pinned_prefixes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "bicached/error.h"

namespace bicached {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class PinnedPrefixesTest : public testing::Test {
 protected:
  PinnedPrefixesTest() {
    text.tokenizer = Tokenizer::load(kDemo);
    text.chat_template = ChatTemplate::load(kDemo, *text.tokenizer);
    model.max_length = 200;
  }

  std::vector<std::vector<TokenId>> encode(const std::vector<std::string>& texts) const {
    CacheSettings settings;
    settings.pinned_prefixes = texts;
    settings.min_prefix_len = min_prefix_len;
    return encode_pinned_prefixes(settings, text, model);
  }
  std::string error_of(const std::vector<std::string>& texts) const {
    try {
      encode(texts);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidSettings);
      EXPECT_EQ(error.param(), "pinned_prefixes");
      return error.what();
    }
    return "";
  }

  static constexpr const char* kDemo = BICACHED_SOURCE_DIR "/models/demo";
  TextTools text;
  ModelInfo model;
  int min_prefix_len = 1;
};

TEST_F(PinnedPrefixesTest, AreWhatChatsWithTheSystemPromptBeginWith) {
  const std::string prompt = "You are the assistant of the shop Cedar.";
  const std::vector<TokenId> prefix = encode({prompt}).at(0);
  for (const char* question : {"x", "How much is the blue lamp?", ""}) {
    const EncodedChat chat = encode_chat(*text.chat_template, *text.tokenizer,
                                         {{"system", prompt}, {"user", question}}, true);
    ASSERT_FALSE(chat.prefix_lengths.empty());
    EXPECT_EQ(chat.prefix_lengths.front(), static_cast<int>(prefix.size()));
    EXPECT_TRUE(std::equal(prefix.begin(), prefix.end(), chat.ids.begin()));
  }
}

TEST_F(PinnedPrefixesTest, AreRawPromptsWithoutATemplate) {
  text.chat_template.reset();
  const auto raw = text.tokenizer->add_special(text.tokenizer->encode("Price list:", true));
  EXPECT_EQ(encode({"Price list:"}).at(0), raw);
}

TEST_F(PinnedPrefixesTest, MistakesNameTheirPlaceInTheList) {
  EXPECT_THAT(error_of({"short", ""}), HasSubstr("pinned_prefixes[1]"));
  std::string tale;
  for (int i = 0; i < 200; ++i) tale += "price ";
  EXPECT_THAT(error_of({"short", "short", tale}),
              AllOf(HasSubstr("pinned_prefixes[2]"), HasSubstr("200")));
  min_prefix_len = 32;
  EXPECT_EQ(error_of({tale.substr(0, 300)}), "");
  EXPECT_THAT(error_of({tale.substr(0, 300), "short"}),
              AllOf(HasSubstr("pinned_prefixes[1]"), HasSubstr("min_prefix_len, 32")));
}

TEST_F(PinnedPrefixesTest, ATemplateThatRefusesSystemMessagesIsAnError) {
  text.chat_template = ChatTemplate::compile(
      "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
      "{% for m in messages %}{{ m['content'] }}{% endfor %}",
      "", "", text.tokenizer->added_token_texts());
  EXPECT_THAT(error_of({"one"}),
              AllOf(HasSubstr("pinned_prefixes[0]"), HasSubstr("no system role")));
}

}  // namespace
}  // namespace bicached
