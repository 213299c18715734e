#include "config/decode_defaults.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "bicached/error.h"

namespace bicached {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class DecodeDefaults : public ::testing::Test {
 protected:
  DecodeDefaults() : folder_(::testing::TempDir() + "decode_defaults_" + std::to_string(getpid())) {
    std::filesystem::create_directory(folder_);
  }
  ~DecodeDefaults() override { std::filesystem::remove_all(folder_); }

  DecodeSettings resolve(const std::string& json, const DecodeSettings& settings = {}) {
    std::ofstream(folder_ + "/generation_config.json") << json;
    return resolve_decode_defaults(settings, folder_);
  }
  Error error_of(const std::string& json, const DecodeSettings& settings = {}) {
    try {
      resolve(json, settings);
    } catch (const Error& error) {
      return error;
    }
    return Error(ErrorCode::kInternal, "nothing was thrown");
  }

  std::string folder_;
};

TEST_F(DecodeDefaults, WithoutAFileTheFixedValuesHold) {
  const DecodeSettings resolved = resolve_decode_defaults({}, folder_);
  EXPECT_EQ(resolved.max_tokens, 64);
  EXPECT_EQ(resolved.block_length, 32);
  EXPECT_EQ(resolved.algorithm, "low_confidence");
  EXPECT_EQ(resolved.params.at("threshold"), 0.9);
  EXPECT_EQ(resolved.temperature, 0.0);
  EXPECT_EQ(default_steps(resolved, 100), 100);  // one a token, whatever the request's length
}

TEST_F(DecodeDefaults, TheModelsFileFillsWhatIsOpen) {
  const DecodeSettings resolved = resolve(
      R"({"gen_length": 128, "block_length": 16, "steps": 32, "threshold": 0.8, "temperature": 0.5,
          "remasking": "low_confidence", "bos_token_id": 0})");
  EXPECT_EQ(resolved.max_tokens, 128);
  EXPECT_EQ(resolved.block_length, 16);
  EXPECT_EQ(default_steps(resolved, 128), 32);
  EXPECT_EQ(default_steps(resolved, 8), 8);  // never more than tokens
  EXPECT_EQ(resolved.params.at("threshold"), 0.8);
  EXPECT_EQ(resolved.temperature, 0.5);
  EXPECT_EQ(resolved.algorithm, "threshold");
}

TEST_F(DecodeDefaults, RemaskingIsTheAlgorithmWhereThereIsNoThreshold) {
  EXPECT_EQ(resolve(R"({"remasking": "random"})").algorithm, "random");
  EXPECT_EQ(resolve(R"({"max_new_tokens": 7})").max_tokens, 7);
}

TEST_F(DecodeDefaults, AFileOfDreamNamesItsAlgorithmAndItsNumbers) {
  const DecodeSettings resolved =
      resolve(R"({"alg": "origin", "alg_temp": 0.1, "eps": 0.002, "steps": 512, "top_p": null})");
  EXPECT_EQ(resolved.algorithm, "origin");
  EXPECT_EQ(resolved.params.at("alg_temp"), 0.1);
  EXPECT_EQ(resolved.params.at("eps"), 0.002);
  EXPECT_EQ(default_steps(resolved, 1000), 512);
  EXPECT_EQ(resolve(R"({"alg_temp": null})").params.at("alg_temp"), 0.0);
  EXPECT_EQ(error_of(R"({"eps": 2})").code(), ErrorCode::kInvalidModel);
}

TEST_F(DecodeDefaults, TheFamilysReferenceIsWhatIsLeft) {
  const ReferenceDecoder reference{"entropy", 77, Schedule::kTimesteps, true, {}};
  const DecodeSettings resolved = resolve_decode_defaults({}, folder_, reference);
  EXPECT_EQ(resolved.algorithm, "entropy");
  EXPECT_EQ(resolved.block_length, 77);
  EXPECT_EQ(resolved.schedule, "auto") << "the family's, which the decoder knows";
}

TEST_F(DecodeDefaults, SettingsWinOverTheModel) {
  DecodeSettings settings;
  settings.max_tokens = 10;
  settings.steps = 5;
  settings.block_length = 2;
  settings.algorithm = "entropy";
  settings.params["threshold"] = 0.7;
  settings.temperature = 0;
  const DecodeSettings resolved = resolve(
      R"({"gen_length": 128, "block_length": 16, "steps": 32, "threshold": 0.8, "temperature": 1})",
      settings);
  EXPECT_EQ(resolved.max_tokens, 10);
  EXPECT_EQ(resolved.steps, 5);
  EXPECT_EQ(resolved.block_length, 2);
  EXPECT_EQ(resolved.algorithm, "entropy");
  EXPECT_EQ(resolved.params.at("threshold"), 0.7);
  EXPECT_EQ(resolved.temperature, 0.0);
}

TEST_F(DecodeDefaults, BadValuesOfTheModelNameFileAndKey) {
  for (const char* json :
       {R"({"gen_length": 0})", R"({"gen_length": "64"})", R"({"steps": 1.5})",
        R"({"threshold": 2})", R"({"temperature": -1})", R"({"remasking": 1})", "[]", "{"}) {
    const Error error = error_of(json);
    EXPECT_EQ(error.code(), ErrorCode::kInvalidModel) << json;
    EXPECT_THAT(error.what(), HasSubstr("generation_config.json")) << json;
  }
  EXPECT_THAT(error_of(R"({"gen_length": 0})").what(),
              AllOf(HasSubstr("\"gen_length\""), HasSubstr("1 to 1048576")));
}

TEST_F(DecodeDefaults, ValuesThatOnlyTheRangeForMinusOneLetThroughAreRefused) {
  DecodeSettings settings;
  settings.steps = 0;
  EXPECT_EQ(error_of("{}", settings).param(), "steps");
  settings = {};
  settings.max_tokens = 0;
  EXPECT_EQ(error_of("{}", settings).param(), "max_tokens");
  settings = {};
  settings.params["threshold"] = -0.5;
  EXPECT_EQ(error_of("{}", settings).param(), "threshold");
}

TEST_F(DecodeDefaults, TheDemonstrationModelUsesItsThreshold) {
  const DecodeSettings resolved = resolve_decode_defaults({}, BICACHED_SOURCE_DIR "/models/demo");
  EXPECT_EQ(resolved.algorithm, "threshold");
  EXPECT_EQ(resolved.max_tokens, 64);
}

}  // namespace
}  // namespace bicached
