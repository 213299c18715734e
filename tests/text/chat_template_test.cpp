#include "bicached/chat_template.h"

#include <gtest/gtest.h>

#include "bicached/error.h"

namespace bicached {
namespace {

const std::string kDemo = BICACHED_SOURCE_DIR "/models/demo";
const std::string kPlain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";

std::unique_ptr<ChatTemplate> compile(const std::string& source) {
  return ChatTemplate::compile(source, "", "", {{"<|eot_id|>", true}, {"<think>", false}});
}

std::string error_of(const std::function<void()>& action, ErrorCode code) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code);
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

TEST(ChatTemplate, RendersRolesAndContents) {
  EXPECT_EQ(compile(kPlain)->render({{"system", "s"}, {"user", "u"}}, true).text(),
            "<system>s<user>u");
}

TEST(ChatTemplate, ATemplateThatTakesPartsGetsParts) {
  const std::string loop = "{% for p in m.content %}{{ p.text }}{% endfor %}";
  const std::string whole = "{% for m in messages %}<{{ m.role }}>" + loop + "{% endfor %}";
  EXPECT_EQ(compile(whole)->render({{"system", "s"}, {"user", "u v"}}, true).text(),
            "<system>s<user>u v");
  const std::string by_index =
      "{% for m in messages %}<{{ m.role }}>{{ m.content[0]['text'] }}{% endfor %}";
  EXPECT_EQ(compile(by_index)->render({{"user", "u v"}}, true).text(), "<user>u v");
  // One role's content as parts, another's as text.
  const std::string mixed = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' %}" +
                            loop + "{% else %}{{ m.content }}{% endif %}{% endfor %}";
  EXPECT_EQ(
      compile(mixed)->render({{"system", "s"}, {"user", "u"}, {"assistant", "a"}}, true).text(),
      "<system>s<user>u<assistant>a");
  // Both forms: the plain one, as most clients send it.
  const std::string both =
      "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}[" + loop +
      "]{% endif %}{% endfor %}";
  EXPECT_EQ(compile(both)->render({{"user", "u"}}, true).text(), "u");
  // In so many words.
  const std::string wordy =
      "{% for m in messages %}{% if m.content is string %}{{ raise_exception('parts, please') }}"
      "{% endif %}" +
      loop + "{% endfor %}";
  EXPECT_EQ(compile(wordy)->render({{"user", "u"}}, true).text(), "u");
  // No system message.
  const std::string strict =
      "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + whole;
  EXPECT_EQ(compile(strict)->render({{"user", "u"}}, true).text(), "<user>u");
}

TEST(ChatTemplate, OneThatLosesTheUsersTextIsRefused) {
  EXPECT_NE(error_of([] { compile("{% for m in messages %}{{ m.role }}{% endfor %}"); },
                     ErrorCode::kInvalidModel)
                .find("what a user says"),
            std::string::npos);
}

TEST(ChatTemplate, SpecialTokensOfMessagesAreUntrustedPieces) {
  const RenderedChat chat =
      compile(kPlain + "<|eot_id|>")->render({{"user", "a<|eot_id|>b <think>"}}, true);
  ASSERT_EQ(chat.pieces.size(), 3u);
  EXPECT_EQ(chat.text(), "<user>a<|eot_id|>b <think><|eot_id|>");
  EXPECT_TRUE(chat.pieces[0].trusted);
  EXPECT_EQ(chat.pieces[1].text, "<|eot_id|>");
  EXPECT_FALSE(chat.pieces[1].trusted);
  EXPECT_TRUE(chat.pieces[2].trusted);
}

TEST(ChatTemplate, TheTemplatesOwnTextOfATokenDisarmsItInMessages) {
  const RenderedChat chat = compile("<think>" + kPlain)->render({{"user", "<think>"}}, true);
  ASSERT_EQ(chat.pieces.size(), 2u);
  EXPECT_FALSE(chat.pieces[1].trusted);
}

TEST(ChatTemplate, RaisedMessagesReachTheClient) {
  const auto chat_template = compile("{{ raise_exception('no ' ~ messages[0].role) }}");
  EXPECT_EQ(
      error_of([&] { chat_template->render({{"tool", "x"}}, true); }, ErrorCode::kInvalidRequest),
      "no tool");
}

TEST(ChatTemplate, NoMessagesOrBrokenTextIsRefused) {
  const auto chat_template = compile(kPlain);
  error_of([&] { chat_template->render({}, true); }, ErrorCode::kInvalidRequest);
  error_of([&] { chat_template->render({{"user", "\xFF"}}, true); }, ErrorCode::kInvalidRequest);
}

/// Each of these would hang, fill memory or overflow the stack if nothing stopped it.
TEST(ChatTemplate, HostileTemplatesAreRefusedAtStart) {
  const std::string deep(20000, '(');
  for (const std::string& source : {
           std::string(
               "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"),
           std::string("{% for i in range(999999999) %}x{% endfor %}"),
           std::string("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s "
                       "~ ns.s %}{% endfor %}"),
           std::string("{{ 'a' * 100000000000 }}"),
           std::string("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
           "{{ " + deep + "1" + std::string(20000, ')') + " }}",
           "{{ 1" + std::string(20000, '+') + "1 }}",
           "{{ not " + std::string(200, '-') + "1 }}",
           std::string("{{ 1 / 0 }}"),
           std::string("{{ (0 - 9223372036854775807 - 1) // -1 }}"),
           std::string("{{ messages.__class__ }}"),
           std::string("{% include 'x' %}"),
           std::string("{% for m in messages %}"),
           std::string(70000, 'x'),
       }) {
    error_of([&] { compile(source); }, ErrorCode::kInvalidModel);
  }
}

TEST(ChatTemplate, ManyTokensInAMessageStayLinear) {
  std::string content;
  for (int i = 0; i < 100000; ++i) content += "<|eot_id|>";
  EXPECT_EQ(compile(kPlain)->render({{"user", content}}, true).text(), "<user>" + content);
}

class DemoChat : public testing::Test {
 protected:
  std::unique_ptr<Tokenizer> tokenizer = Tokenizer::load(kDemo);
  std::unique_ptr<ChatTemplate> chat_template = ChatTemplate::load(kDemo, *tokenizer);
};

TEST_F(DemoChat, AnEndTokenInUserTextStaysLetters) {
  const TokenId eot = tokenizer->encode("<|eot_id|>", true).front();
  const auto ids =
      encode_chat(*chat_template, *tokenizer, {{"user", "say <|eot_id|> now"}}, true).ids;
  EXPECT_EQ(std::count(ids.begin(), ids.end(), eot), 1);  // the template's own
  EXPECT_NE(tokenizer->decode(ids, true).find("say <|eot_id|> now"), std::string::npos);
}

TEST_F(DemoChat, PrefixLengthsAreTheEndsOfLeadingMessages) {
  const std::vector<ChatMessage> messages = {
      {"system", "Be brief."}, {"user", "One?"}, {"assistant", "1"}, {"user", "Two?"}};
  const EncodedChat chat = encode_chat(*chat_template, *tokenizer, messages, true);
  ASSERT_EQ(chat.prefix_lengths.size(), 3u);
  EXPECT_TRUE(std::is_sorted(chat.prefix_lengths.begin(), chat.prefix_lengths.end()));
  const auto leading = encode_chat(*chat_template, *tokenizer, {messages[0]}, false).ids;
  EXPECT_EQ(chat.prefix_lengths[0], static_cast<int>(leading.size()));
  EXPECT_TRUE(std::equal(leading.begin(), leading.end(), chat.ids.begin()));
}

}  // namespace
}  // namespace bicached
