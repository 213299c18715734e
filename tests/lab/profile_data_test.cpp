#include "lab/profile_data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bicached/error.h"
#include "model/tiny_model.h"

namespace bicached {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kTwo =
    R"({"messages":[{"role":"system","content":"one two three"},{"role":"user","content":"four"}]})";

class ProfileDataTest : public ::testing::Test {
 protected:
  ProfileDataTest() {
    text.tokenizer = Tokenizer::load(kDemo);
    text.chat_template = ChatTemplate::load(kDemo, *text.tokenizer);
    model.max_length = 200;
  }

  ProfileData read(const std::string& lines, int limit = 0, int num_masks = -1) const {
    folder.write("data.jsonl", lines);
    return read_profile_data(folder.path() + "/data.jsonl", limit, text, model, {64, num_masks});
  }
  std::string error_of(const std::string& lines) const {
    try {
      read(lines);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidSettings);
      return error.what();
    }
    return "";
  }

  static constexpr const char* kDemo = BICACHED_SOURCE_DIR "/models/demo";
  const bicached::testing::TempFolder folder;
  TextTools text;
  ModelInfo model;
};

TEST_F(ProfileDataTest, ThePrefixIsAllBeforeTheLastUserMessage) {
  const std::vector<ChatMessage> messages = {
      {"system", "a b"}, {"user", "c"}, {"assistant", "d"}, {"user", "e f g"}};
  const EncodedChat chat = encode_chat(*text.chat_template, *text.tokenizer, messages, true);
  const ProfileData data = read(
      R"({"messages":[{"role":"system","content":"a b"},{"role":"user","content":"c"},)"
      R"({"role":"assistant","content":"d"},{"role":"user","content":"e f g"}],"gen_length":16})");
  ASSERT_EQ(data.conversations.size(), 1u);
  const ProfileConversation& one = data.conversations[0];
  EXPECT_EQ(one.chat.ids, chat.ids);
  EXPECT_EQ(one.prefix_len(), chat.prefix_lengths.back());
  EXPECT_EQ(one.gen_length, 16);
  EXPECT_THAT(one.where, HasSubstr("data.jsonl:1"));
}

TEST_F(ProfileDataTest, WhatFollowsTheLastUserMessageIsLeftOut) {
  std::string answered = kTwo;
  answered.insert(answered.size() - 2, R"(,{"role":"assistant","content":"five"})");
  const ProfileData data = read(std::string(kTwo) + "\n\n" + answered + "\n");
  ASSERT_EQ(data.conversations.size(), 2u);
  EXPECT_EQ(data.conversations[0].chat.ids, data.conversations[1].chat.ids);
  EXPECT_EQ(data.conversations[1].index, 1);
  EXPECT_THAT(data.conversations[1].where, HasSubstr(":3"));
}

TEST_F(ProfileDataTest, CountsWhatCannotBeProfiled) {
  const std::string alone = R"({"messages":[{"role":"user","content":"four"}]})";
  std::string tale = R"({"messages":[{"role":"system","content":")";
  for (int i = 0; i < 100; ++i) tale += "tale ";
  tale += R"("},{"role":"user","content":"four"}]})";
  const ProfileData data = read(alone + "\n" + kTwo + "\n" + tale);
  EXPECT_EQ(data.conversations.size(), 1u);
  EXPECT_EQ(data.num_without_prefix, 1);
  EXPECT_EQ(data.num_too_long, 1);
  EXPECT_EQ(read(alone + "\n" + kTwo + "\n" + tale, 2).num_too_long, 0) << "limit counts lines";
  EXPECT_EQ(read(kTwo, 0, 0).conversations[0].gen_length, 0) << "nothing generated: no masks";
  EXPECT_THAT(error_of(alone), HasSubstr("no conversation"));
}

TEST_F(ProfileDataTest, MistakesNameFileLineAndField) {
  const std::string good = std::string(kTwo) + "\n";
  EXPECT_THAT(error_of(good + "{"), HasSubstr("data.jsonl:2"));
  EXPECT_THAT(error_of(good + "{}"), AllOf(HasSubstr("data.jsonl:2"), HasSubstr("messages")));
  EXPECT_THAT(error_of(good + R"({"messages":[{"role":"user","content":"x"}],"gen_length":0})"),
              AllOf(HasSubstr("data.jsonl:2"), HasSubstr("gen_length")));
  EXPECT_THAT(error_of(good + R"({"messages":[{"role":"system","content":"x"}]})"),
              AllOf(HasSubstr("data.jsonl:2"), HasSubstr("\"role\": \"user\"")));
}

}  // namespace
}  // namespace bicached
