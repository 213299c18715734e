#include "config/reuse_start.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <climits>
#include <filesystem>
#include <fstream>

#include "bicached/error.h"

namespace bicached {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class ReuseStartTest : public ::testing::Test {
 protected:
  ReuseStartTest() : folder_(::testing::TempDir() + "reuse_start_" + std::to_string(getpid())) {
    std::filesystem::create_directory(folder_);
  }
  ~ReuseStartTest() override { std::filesystem::remove_all(folder_); }

  static ModelInfo model(const char* family, int layers, int width, int vocab) {
    ModelInfo info;
    info.family = family;
    info.num_layers = layers;
    info.hidden_size = width;
    info.vocab_size = vocab;
    return info;
  }
  void write(const std::string& json) const {
    std::ofstream(folder_ + "/generation_config.json") << json;
  }

  const std::string folder_;
};

constexpr InsidePlan kPublished = {IntraCache::kDual, 16, INT_MAX, 0};

TEST_F(ReuseStartTest, PublishedCheckpointsStartWithWhatIsPublished) {
  for (const ModelInfo& info :
       {model("llada", 32, 4096, 126464), model("dream", 28, 3584, 152064)}) {
    const ReuseStart start = load_reuse_start(folder_, info);
    EXPECT_EQ(start.plan, kPublished) << info.family;
    EXPECT_TRUE(start.is_published);
    EXPECT_THAT(start.reason, HasSubstr("arXiv 2505.22618"));
  }
}

TEST_F(ReuseStartTest, OtherSizesAndFamiliesStartWithoutReuse) {
  for (const ModelInfo& info :
       {model("llada", 32, 4096, 126465), model("llada", 28, 3584, 152064),
        model("dream", 27, 3584, 152064), model("dream", 28, 2048, 152064)}) {
    const ReuseStart start = load_reuse_start(folder_, info);
    EXPECT_EQ(start.plan, InsidePlan{}) << info.family;
    EXPECT_FALSE(start.is_published);
  }
}

TEST_F(ReuseStartTest, AModelThatAttendsByBlocksNeedsNone) {
  ModelInfo info = model("llada", 32, 4096, 126464);
  info.attention_block = 32;
  EXPECT_EQ(load_reuse_start(folder_, info).plan, InsidePlan{});
}

TEST_F(ReuseStartTest, TheFolderGoesFirst) {
  write(R"({"intra_cache": "adaptive", "refresh_interval": 8, "refresh_depth": 40})");
  const ReuseStart start = load_reuse_start(folder_, model("llada", 32, 4096, 126464));
  EXPECT_EQ(start.plan, (InsidePlan{IntraCache::kAdaptive, 8, 1, 32})) << "as deep as the model";
  EXPECT_FALSE(start.is_published);
  EXPECT_THAT(start.reason, HasSubstr("generation_config.json"));
}

TEST_F(ReuseStartTest, AnUnknownNameIsToldWithWhatIsAllowed) {
  write(R"({"intra_cache": "double"})");
  try {
    load_reuse_start(folder_, model("llada", 1, 1, 1));
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("intra_cache"), HasSubstr("\"double\""),
                                    HasSubstr("none, prefix, dual or adaptive")));
  }
}

}  // namespace
}  // namespace bicached
