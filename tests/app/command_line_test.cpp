#include "app/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/example_request.h"
#include "bicached/error.h"

namespace bicached {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Pair;

CommandLine parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "bicached");
  return parse_command_line(static_cast<int>(arguments.size()), arguments.data());
}

std::string error_of(const std::vector<const char*>& arguments) {
  try {
    parse(arguments);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidSettings);
    return error.what();
  }
  return "";
}

TEST(CommandLine, SettingsAreFlagsOfServe) {
  const CommandLine line =
      parse({"serve", "--port", "9", "--max-tokens", "-1", "--no-eos-early-stop", "--model=m"});
  EXPECT_EQ(line.command, "serve");
  EXPECT_THAT(line.sources.flags, Contains(Pair("port", "9")));
  EXPECT_THAT(line.sources.flags, Contains(Pair("max_tokens", "-1")));
  EXPECT_THAT(line.sources.flags, Contains(Pair("eos_early_stop", "false")));
  EXPECT_THAT(line.sources.flags, Contains(Pair("model", "m")));
}

TEST(CommandLine, EverySettingCanBeGivenToServe) {
  for (const SettingInfo& info : setting_table()) {
    const std::string argument = flag_name(info.name) + "=" +
                                 (info.kind == SettingKind::kSwitch ? "false" : info.default_text);
    if (argument.back() == '=') continue;  // no default to repeat
    EXPECT_THAT(parse({"serve", argument.c_str()}).sources.flags,
                Contains(Pair(info.name, testing::_)));
  }
}

TEST(CommandLine, TheLastOfTwoWins) {
  const CommandLine line = parse({"serve", "--port", "1", "--port", "2"});
  EXPECT_EQ(load_settings(line.sources).server.port, 2);
}

TEST(CommandLine, GenerateCountsItsInputs) {
  EXPECT_EQ(parse({"generate", "m", "--prompt", "- one"}).generate.prompt, "- one");
  EXPECT_EQ(parse({"generate", "m", "--prompt", "-"}).generate.num_inputs, 1);
  EXPECT_EQ(parse({"generate", "m", "--prompt", "a", "--tokens", "1"}).generate.num_inputs, 2);
  EXPECT_EQ(parse({"generate", "m"}).generate.num_inputs, 0);
}

TEST(CommandLine, EvalKnowsWhichRefreshWasAskedFor) {
  const CommandLine plain = parse({"eval", "m", "--data", "f"});
  EXPECT_EQ(plain.eval.data, "f");
  EXPECT_EQ(plain.eval.policies, "off,measured");
  const CommandLine line = parse({"eval", "m", "--refresh-commits", "8", "--steps", "4"});
  EXPECT_THAT(line.sources.flags, Contains(Pair("steps", "4")));
}

TEST(CommandLine, EvalHasPoliciesInsteadOfAServersPolicy) {
  EXPECT_THAT(error_of({"eval", "m", "--cache-policy", "off"}), HasSubstr("--cache-policy"));
  EXPECT_THAT(error_of({"eval", "m", "--polices", "off"}), HasSubstr("mean --policies?"));
}

TEST(CommandLine, MistakesNameTheNearestFlag) {
  EXPECT_THAT(error_of({"serve", "--prot", "9"}),
              AllOf(HasSubstr("'--prot'"), HasSubstr("mean --port?")));
  EXPECT_THAT(error_of({"serve", "m", "extra"}), HasSubstr("'extra'"));
  EXPECT_NE(error_of({"serve", "--port"}), "");
  EXPECT_NE(error_of({"sevre"}), "");
  EXPECT_NE(error_of({}), "");
}

TEST(ExampleRequest, UrlIsReachableFromThisMachine) {
  EXPECT_EQ(local_url("0.0.0.0", 1), "http://127.0.0.1:1");
  EXPECT_EQ(local_url("::", 1), "http://[::1]:1");
  EXPECT_EQ(local_url("example.org", 1), "http://example.org:1");
}

TEST(ExampleRequest, IsQuotedForAShell) {
  Settings settings;
  const std::string curl = example_curl(settings, "http://x", "it's", true);
  EXPECT_THAT(curl, HasSubstr(R"("model":"it'\''s")"));
  EXPECT_THAT(curl, HasSubstr(R"("content":"Hello")"));
  EXPECT_THAT(example_curl(settings, "http://x", "m", false), HasSubstr("/v1/completions"));
}

TEST(ExampleRequest, AsksTheDemonstrationModelWhatItKnows) {
  Settings settings;
  settings.model.path = BICACHED_SOURCE_DIR "/models/demo";
  EXPECT_THAT(example_curl(settings, "http://x", "demo", true),
              HasSubstr("How much is the blue lamp?"));
}

}  // namespace
}  // namespace bicached
