#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "bicached/error.h"
#include "config/settings_io.h"

namespace bicached {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// A file of this test, removed with it.
class TempFile {
 public:
  explicit TempFile(const std::string& text) {
    static int count = 0;
    path_ = ::testing::TempDir() + "settings_test_" + std::to_string(getpid()) + "_" +
            std::to_string(++count) + ".json";
    std::ofstream(path_) << text;
  }
  ~TempFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

Settings from_file(const std::string& json) {
  const TempFile file(json);
  return load_settings({file.path(), {}, {}});
}

std::string error_of(const SettingSources& sources) {
  try {
    load_settings(sources);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidSettings);
    return error.what();
  }
  return "";
}

std::string file_error(const std::string& json) {
  const TempFile file(json);
  return error_of({file.path(), {}, {}});
}

TEST(Settings, FlagWinsOverEnvironmentOverFileOverDefault) {
  const TempFile file(R"({"port": 1001, "max_running": 2, "max_queued": 3})");
  SettingSources sources{
      file.path(), {{"BICACHED_PORT", "1002"}, {"BICACHED_MAX_RUNNING", "7"}}, {}};
  sources.flags = {{"port", "1003"}};
  const Settings settings = load_settings(sources);
  EXPECT_EQ(settings.server.port, 1003);
  EXPECT_EQ(settings.engine.max_running, 7);
  EXPECT_EQ(settings.engine.max_queued, 3);
  EXPECT_EQ(settings.server.host, ServerSettings().host);
}

TEST(Settings, FileOfTheEnvironmentIsReadUnlessAFlagNamesOne) {
  const TempFile one(R"({"port": 1})");
  const TempFile two(R"({"port": 2})");
  EXPECT_EQ(load_settings({"", {{"BICACHED_CONFIG", one.path()}}, {}}).server.port, 1);
  EXPECT_EQ(load_settings({two.path(), {{"BICACHED_CONFIG", one.path()}}, {}}).server.port, 2);
}

TEST(Settings, EveryKindComesFromFileAndFromText) {
  const Settings file = from_file(
      R"({"alias": ["a", "b"], "eos_early_stop": false, "threshold": 0.5, "dtype": "float32", "kv_cache_bytes": 5000000000})");
  SettingSources sources;
  sources.flags = {{"alias", "a,b"},
                   {"eos_early_stop", "false"},
                   {"threshold", "0.5"},
                   {"dtype", "float32"},
                   {"kv_cache_bytes", "5000000000"}};
  const Settings text = load_settings(sources);
  for (const Settings& settings : {file, text}) {
    EXPECT_THAT(settings.server.alias, ElementsAre("a", "b"));
    EXPECT_FALSE(settings.decode.eos_early_stop);
    EXPECT_EQ(settings.decode.params.at("threshold"), 0.5);
    EXPECT_EQ(settings.model.dtype, "float32");
    EXPECT_EQ(settings.model.kv_cache_bytes, 5000000000);
  }
}

TEST(Settings, UnknownNamesSuggestTheNearest) {
  EXPECT_THAT(file_error(R"({"prot": 1})"), AllOf(HasSubstr("\"prot\""), HasSubstr("mean port?")));
  EXPECT_THAT(error_of({"", {{"BICACHED_MAX_RUNING", "1"}}, {}}),
              AllOf(HasSubstr("BICACHED_MAX_RUNING"), HasSubstr("mean BICACHED_MAX_RUNNING?")));
  EXPECT_THAT(error_of({"", {}, {{"treshold", "1"}}}),
              AllOf(HasSubstr("--treshold"), HasSubstr("mean --threshold?")));
  EXPECT_THAT(file_error(R"({"completely_different": 1})"), Not(HasSubstr("did you mean")));
}

TEST(Settings, OtherVariablesAreNotOurs) {
  EXPECT_NO_THROW(load_settings({"", {{"PATH", "/bin"}, {"XBICACHED_PORT", "no"}}, {}}));
}

TEST(Settings, AnEmptyVariableIsNone) {
  SettingSources sources;
  sources.environment = {{"BICACHED_HOST", ""},
                         {"BICACHED_PORT", ""},
                         {"BICACHED_ALIAS", ""},
                         {"BICACHED_EOS_EARLY_STOP", ""}};
  const Settings settings = load_settings(sources);
  EXPECT_EQ(settings.server.host, std::vector<std::string>{"127.0.0.1"});
  EXPECT_EQ(settings.server.port, 8080);
}

TEST(Settings, AListOfOneMayBeAText) {
  SettingSources sources;
  sources.environment = {{"BICACHED_HOST", "127.0.0.1,::1"}};
  EXPECT_EQ(load_settings(sources).server.host, (std::vector<std::string>{"127.0.0.1", "::1"}));
  const std::string path =
      testing::TempDir() + "bicached_list_" + std::to_string(::getpid()) + ".json";
  std::ofstream(path) << R"({"host": "0.0.0.0"})";
  sources = {};
  sources.config_file = path;
  EXPECT_EQ(load_settings(sources).server.host, std::vector<std::string>{"0.0.0.0"});
  std::remove(path.c_str());
}

TEST(Settings, RangeErrorsNameSettingValueRangeUnitAndOrigin) {
  EXPECT_THAT(error_of({"", {{"BICACHED_DRAIN_TIMEOUT_MS", "-1"}}, {}}),
              AllOf(HasSubstr("drain_timeout_ms"), HasSubstr("'-1'"), HasSubstr("0 to 86400000 ms"),
                    HasSubstr("environment variable BICACHED_DRAIN_TIMEOUT_MS")));
  EXPECT_THAT(error_of({"", {}, {{"port", "65536"}}}),
              AllOf(HasSubstr("'65536'"), HasSubstr("0 to 65535"), HasSubstr("flag --port")));
  const TempFile file(R"({"max_running": 5000})");
  EXPECT_THAT(error_of({file.path(), {}, {}}),
              AllOf(HasSubstr("0 to 4096 canvases"), HasSubstr(file.path())));
}

TEST(Settings, WrongTypesAndHalfNumbersAreRefused) {
  for (const char* json :
       {R"({"port": "80"})", R"({"port": 80.5})", R"({"port": null})", R"({"port": 1e300})",
        R"({"host": 1})", R"({"alias": 2})", R"({"alias": [1]})", R"({"eos_early_stop": 1})",
        R"({"dtype": "float16"})", R"({"dtype": 1})", R"({"port": [[1]]})"}) {
    EXPECT_THAT(file_error(json), HasSubstr("allowed is")) << json;
  }
  for (const char* value : {"", "80x", "0x50", " 80", "nan", "inf", "1e999", "80.5"}) {
    EXPECT_THAT(error_of({"", {}, {{"port", value}}}), HasSubstr("allowed is")) << value;
  }
}

TEST(Settings, BrokenFilesAreErrorsWithTheirName) {
  EXPECT_THAT(error_of({"/no/such/file.json", {}, {}}), HasSubstr("/no/such/file.json"));
  EXPECT_THAT(error_of({::testing::TempDir(), {}, {}}), HasSubstr("a folder"));
  EXPECT_THAT(file_error("[]"), HasSubstr("one JSON object"));
  EXPECT_THAT(file_error("{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(file_error(R"({"port": 1, "port": 2})"), HasSubstr("\"port\" is given twice"));
  EXPECT_THAT(file_error(std::string(100000, '[')), HasSubstr("nested deeper than"));
  EXPECT_THAT(file_error(std::string(2 << 20, ' ')), HasSubstr("longer than"));
}

TEST(Settings, JsonOfTheSettingsLoadsToTheSameSettings) {
  Settings settings;
  settings.server.alias = {"x", "*"};
  settings.decode.params["threshold"] = 0.25;
  settings.model.kv_cache_bytes = 123456789012;
  settings.server.api_key_file = "/etc/keys";
  const std::string json = settings_to_json(settings);
  EXPECT_EQ(settings_to_json(from_file(json)), json);
}

TEST(Settings, NamesAreUniqueAndFitFileEnvironmentAndFlag) {
  std::set<std::string> seen;
  for (const SettingInfo& info : setting_table()) {
    EXPECT_TRUE(seen.insert(info.name).second) << info.name << " is declared twice";
    EXPECT_EQ(info.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_"),
              std::string::npos)
        << info.name;
    EXPECT_FALSE(info.about.empty()) << info.name;
  }
  EXPECT_EQ(flag_name("kv_cache_bytes"), "--kv-cache-bytes");
  EXPECT_EQ(environment_name("kv_cache_bytes"), "BICACHED_KV_CACHE_BYTES");
}

TEST(Settings, DefaultsAreInTheirOwnRange) {
  EXPECT_NO_THROW(from_file(settings_to_json(Settings())));
}

TEST(Settings, ExampleConfigurationsLoad) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(BICACHED_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".json") continue;
    ++count;
    EXPECT_NO_THROW(load_settings({entry.path(), {}, {}})) << entry.path();
  }
  EXPECT_GT(count, 0);
}

TEST(Settings, SettingsPageHoldsTheGeneratedTable) {
  std::ifstream file(BICACHED_SOURCE_DIR "/docs/settings.md");
  const std::string page{std::istreambuf_iterator<char>(file), {}};
  const std::string begin = "<!-- settings: made by `bicached settings --markdown` -->\n";
  const size_t from = page.find(begin);
  const size_t to = page.find("<!-- end of settings -->");
  ASSERT_NE(from, std::string::npos);
  ASSERT_NE(to, std::string::npos);
  EXPECT_EQ(page.substr(from + begin.size(), to - from - begin.size()), settings_to_markdown());
}

TEST(Settings, ADeviceIsNamedWithOrWithoutItsNumber) {
  for (const char* device : {"auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:15"}) {
    EXPECT_EQ(load_settings({"", {}, {{"device", device}}}).model.device, device);
    EXPECT_EQ(from_file(nlohmann::json{{"device", device}}.dump()).model.device, device);
  }
  for (const char* device : {"", "cuda:", "cuda:N", "cuda:-1", "cuda:+1", "cuda:1.5", "cuda:1 ",
                             "cuda:1000", "cuda1", "cpu:0", "gpu"}) {
    EXPECT_THAT(error_of({"", {}, {{"device", device}}}),
                HasSubstr("allowed is one of auto, cpu, cuda, cuda:N"))
        << device;
  }
  EXPECT_THAT(file_error(R"({"device": 1})"), HasSubstr("device is '1'"));
}

}  // namespace
}  // namespace bicached
