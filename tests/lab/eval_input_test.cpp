#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "app/flag_values.h"
#include "lab/eval_data.h"
#include "lab/eval_policy.h"

namespace bicached {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kGood =
    R"({"id": "q1", "family": "sums", "gen_length": 64, "group": 3, )"
    R"("messages": [{"role": "user", "content": "1 + 1"}], "answer": "2"})";

template <class Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidSettings);
    return error.what();
  }
  return "";
}

class EvalData : public testing::Test {
 protected:
  ~EvalData() override { std::filesystem::remove(path_); }

  std::vector<EvalQuestion> read(const std::string& text) {
    std::ofstream(path_, std::ios::binary) << text;
    return read_eval_data(path_);
  }

  /// The message for this line after two that are fine and one that is blank.
  std::string error_of_line(const std::string& line) {
    return error_of([&] { read(std::string(kGood) + "\n \t\r\n" + kGood + "\n" + line + "\n"); });
  }

  const std::string path_ = testing::TempDir() + "eval_" +
                            testing::UnitTest::GetInstance()->current_test_info()->name() +
                            ".jsonl";
};

TEST_F(EvalData, ReadsQuestionsAndSkipsBlankLines) {
  const auto questions =
      read(std::string("\n") + kGood + "\r\n  \n" +
           R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],)"
           R"( "answer": ""})");
  ASSERT_EQ(questions.size(), 2u);
  EXPECT_EQ(questions[0].line, 2);
  EXPECT_EQ(questions[0].id, "q1");
  EXPECT_EQ(questions[0].family, "sums");
  EXPECT_EQ(questions[0].gen_length, 64);
  EXPECT_EQ(questions[0].messages[0].content, "1 + 1");
  EXPECT_EQ(questions[0].answer, "2");
  EXPECT_EQ(questions[1].line, 4);
  EXPECT_EQ(questions[1].family, kNoFamily);
  EXPECT_EQ(questions[1].gen_length, 0);
  EXPECT_EQ(questions[1].messages[0].role, "system");
}

TEST_F(EvalData, MistakesNameFileLineAndField) {
  const std::string place = path_ + ":4: ";
  EXPECT_THAT(error_of_line("{"), AllOf(HasSubstr(place), HasSubstr("not valid JSON")));
  EXPECT_THAT(error_of_line("[]"), AllOf(HasSubstr(place), HasSubstr("an object, not array")));
  EXPECT_THAT(error_of_line(R"({"answer": "2"})"),
              AllOf(HasSubstr(place), HasSubstr("messages is missing"), HasSubstr("\"role\"")));
  const std::string start = R"({"messages": [{"role": "user", "content": "a"}])";
  EXPECT_THAT(error_of_line(start + "}"), AllOf(HasSubstr(place), HasSubstr("answer is missing")));
  EXPECT_THAT(error_of_line(start + R"(, "answer": 2})"),
              AllOf(HasSubstr(place), HasSubstr("answer must be a string, not number")));
  EXPECT_THAT(error_of_line(start + R"(, "answer": "2", "gen_length": 0})"),
              AllOf(HasSubstr(place), HasSubstr("gen_length is 0; allowed is 1 to 1048576")));
  EXPECT_THAT(error_of_line(start + R"(, "answer": "2", "family": 1})"),
              AllOf(HasSubstr(place), HasSubstr("family must be a string")));
  EXPECT_THAT(error_of_line(R"({"messages": [{"role": "bot", "content": "a"}], "answer": "2"})"),
              AllOf(HasSubstr(place), HasSubstr("messages[0].role"), HasSubstr("assistant")));
}

TEST_F(EvalData, EmptyAndMissingFilesAreRefused) {
  EXPECT_THAT(error_of([&] { read(""); }), HasSubstr("has no questions"));
  EXPECT_THAT(error_of([&] { read(" \n\n"); }), HasSubstr(path_));
  EXPECT_THAT(error_of([] { read_eval_data("no/such.jsonl"); }), HasSubstr("no/such.jsonl"));
}

std::vector<EvalQuestion> of_families(const std::vector<std::string>& families) {
  std::vector<EvalQuestion> questions(families.size());
  for (size_t i = 0; i < families.size(); ++i) {
    questions[i].line = static_cast<int>(i);
    questions[i].family = families[i];
  }
  return questions;
}

std::vector<int> lines_of(const EvalSelection& selection) {
  std::vector<int> lines;
  for (const EvalQuestion& question :
       select_questions(of_families({"staff", "sums", "long", "sums"}), selection, "f")) {
    lines.push_back(question.line);
  }
  return lines;
}

TEST(SelectQuestions, KeepsWantedFamiliesInOrderThenLimits) {
  EXPECT_THAT(lines_of({}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(lines_of({{"sums", "staff"}, {}, 0}), ElementsAre(0, 1, 3));
  EXPECT_THAT(lines_of({{}, {"sums"}, 0}), ElementsAre(0, 2));
  EXPECT_THAT(lines_of({{"sums"}, {}, 1}), ElementsAre(1));
  EXPECT_THAT(lines_of({{}, {}, 9}), ElementsAre(0, 1, 2, 3));
}

TEST(SelectQuestions, UnknownFamiliesNameTheKnown) {
  EXPECT_THAT(error_of([] { lines_of({{"smus"}, {}, 0}); }),
              AllOf(HasSubstr("--families"), HasSubstr("long, staff, sums"),
                    HasSubstr("did you mean sums?")));
  EXPECT_THAT(error_of([] { lines_of({{}, {"x"}, 0}); }), HasSubstr("--without-families"));
  EXPECT_THAT(error_of([] { lines_of({{"sums"}, {"sums"}, 0}); }), HasSubstr("leave no question"));
}

TEST(EvalPolicies, AreReadInOrder) {
  const auto policies = parse_eval_policies("off, fixed:0,fixed:4,measured,intra", 12);
  ASSERT_EQ(policies.size(), 5u);
  EXPECT_EQ(policies[0].name, "off");
  EXPECT_EQ(policies[0].depth, std::nullopt);
  EXPECT_EQ(policies[1].name, "fixed");
  EXPECT_EQ(policies[1].depth, 0);
  EXPECT_EQ(policies[2].label, "fixed:4");
  EXPECT_EQ(policies[2].depth, 4);
  EXPECT_EQ(policies[3].name, "measured");
  EXPECT_EQ(policies[4].label, "intra");
  EXPECT_EQ(policies[4].depth, 0);
}

TEST(EvalPolicies, MistakesNameTheKnown) {
  for (const char* text : {"best", "fixed", "", "off,Measured"}) {
    EXPECT_THAT(error_of([&] { parse_eval_policies(text, 12); }),
                AllOf(HasSubstr("--policies"), HasSubstr("off, fixed:N")))
        << text;
  }
  for (const char* text : {"fixed:13", "fixed:-1", "fixed:", "fixed:x"}) {
    EXPECT_THAT(error_of([&] { parse_eval_policies(text, 12); }), HasSubstr("0 to 12")) << text;
  }
}

TEST(EvalPolicies, EntriesHaveAllDepthsThatAreCompared) {
  CacheSettings settings;
  settings.state_dir = "somewhere";
  const CacheSettings fixed =
      eval_cache_settings(settings, parse_eval_policies("off,fixed:0,fixed:3,full", 12), 12);
  EXPECT_THAT(fixed.more_depths, ElementsAre(0, 3, 12));
  EXPECT_EQ(fixed.state_dir, "somewhere");
  EXPECT_TRUE(fixed.state_is_read_only);
  const CacheSettings measured =
      eval_cache_settings(settings, parse_eval_policies("fixed:5,measured", 12), 12);
  EXPECT_THAT(measured.more_depths, ElementsAre(5, 1, 3, 4, 6, 9, 12));
}

TEST(EvalPolicies, TableNeedsATable) {
  EXPECT_THAT(error_of([] { eval_cache_settings({}, parse_eval_policies("table", 12), 12); }),
              HasSubstr("--depth-table"));
}

TEST(FlagValues, NamesAreSplitAtCommas) {
  EXPECT_THAT(split_names("a, b,,c "), ElementsAre("a", "b", "c"));
  EXPECT_THAT(split_names(" , "), IsEmpty());
  EXPECT_EQ(joined({"a", "b"}), "a, b");
}

TEST(FlagValues, CountsAreWholeNumbersOfARange) {
  EXPECT_EQ(parse_count("--n", "7"), 7);
  for (const char* text : {"0", "x", "", "7x", "99999999999"}) {
    EXPECT_THAT(error_of([&] { parse_count("--n", text); }),
                AllOf(HasSubstr("--n"), HasSubstr("1 to 1048576")));
  }
}

}  // namespace
}  // namespace bicached
