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

/// A program with one command that takes every setting, and one with flags of its own.
struct Parsed {
  std::string command, limit = "7";
  std::optional<std::string> prompt;
  bool json = false;
  SettingSources sources;
};

Parsed parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "bicached");
  Parsed parsed;
  const auto run = [](const Settings&) { return 0; };
  Command own{"own", "", run};
  own.flags = {{"--limit", "", &parsed.limit},
               {"--prompt", "", &parsed.prompt},
               {"--json", "", &parsed.json}};
  own.setting_groups = kDecodingGroups;
  own.decides = {"cache_policy"};
  const Program program{"bicached", "", {Command{"serve", "", run}, own}};
  const CommandLine line =
      parse_command_line(program, static_cast<int>(arguments.size()), arguments.data());
  parsed.command = line.command->name;
  parsed.sources = line.sources;
  return parsed;
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
  const Parsed line =
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
  const Parsed line = parse({"serve", "--port", "1", "--port", "2"});
  EXPECT_EQ(load_settings(line.sources).server.port, 2);
}

TEST(CommandLine, AFlagOfItsOwnIsGivenOrHasItsDefault) {
  EXPECT_EQ(parse({"own", "m"}).limit, "7");
  EXPECT_EQ(parse({"own", "m"}).prompt, std::nullopt);
  EXPECT_FALSE(parse({"own", "m"}).json);
  EXPECT_EQ(parse({"own", "m", "--limit", "8"}).limit, "8");
  EXPECT_EQ(parse({"own", "m", "--prompt", "- one"}).prompt, "- one");
  EXPECT_EQ(parse({"own", "m", "--prompt", ""}).prompt, "");
  EXPECT_TRUE(parse({"own", "m", "--json"}).json);
}

TEST(CommandLine, SettingsOfItsGroupsAreFlagsToo) {
  EXPECT_THAT(parse({"own", "m", "--refresh-commits", "8"}).sources.flags,
              Contains(Pair("refresh_commits", "8")));
  EXPECT_THAT(error_of({"own", "m", "--port", "8"}), HasSubstr("--port"));
  EXPECT_THAT(error_of({"own", "m", "--cache-policy", "off"}), HasSubstr("--cache-policy"));
  EXPECT_THAT(error_of({"own", "m", "--limi", "1"}), HasSubstr("mean --limit?"));
}

TEST(CommandLine, MistakesNameTheNearestFlag) {
  EXPECT_THAT(error_of({"serve", "--prot", "9"}),
              AllOf(HasSubstr("'--prot'"), HasSubstr("mean --port?")));
  EXPECT_THAT(error_of({"serve", "m", "extra"}), HasSubstr("'extra'"));
  EXPECT_THAT(error_of({"serve", "--port"}), HasSubstr("--port needs a value"));
  EXPECT_THAT(error_of({"serve", "--zzzzzzzz"}), HasSubstr("serve. See"));
  EXPECT_THAT(error_of({"sevre"}), AllOf(HasSubstr("'sevre'"), HasSubstr("mean serve?")));
  EXPECT_THAT(error_of({"--hlp"}), HasSubstr("mean --help?"));
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
