#include "lab/partial_results.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "bicached/error.h"
#include "model/tiny_model.h"

namespace bicached {
namespace {

using Numbers = std::vector<double>;

class PartialResultsTest : public ::testing::Test {
 protected:
  const bicached::testing::TempFolder folder_;
  const std::string path = folder_.path() + "/table.json.partial";
};

TEST_F(PartialResultsTest, AreFoundByASecondRun) {
  {
    PartialResults first(path);
    EXPECT_EQ(first.num_found(), 0u);
    first.add(0, "a", {1.0, 0.1 + 0.2});
    first.add(3, "b", {1.0, 0.5});
  }
  const PartialResults second(path);
  EXPECT_EQ(second.num_found(), 2u);
  ASSERT_TRUE(second.find(0, "a"));
  EXPECT_EQ(*second.find(0, "a"), (Numbers{1.0, 0.1 + 0.2})) << "to the last bit";
}

TEST_F(PartialResultsTest, OfAnotherTextOrPlaceAreNotTaken) {
  PartialResults results(path);
  results.add(0, "a", {1.0});
  EXPECT_FALSE(results.find(0, "b"));
  EXPECT_FALSE(results.find(1, "a"));
}

TEST_F(PartialResultsTest, ALineThatWasCutIsMadeAgain) {
  {
    PartialResults(path).add(0, "a", {1.0});
  }
  {
    std::ofstream file(path, std::ios::app);
    file << R"({"index": 1, "hash": "b", "simil)";
  }
  {
    PartialResults after(path);
    EXPECT_EQ(after.num_found(), 1u);
    EXPECT_FALSE(after.find(1, "b"));
    after.add(1, "b", {0.5});
  }
  EXPECT_EQ(PartialResults(path).num_found(), 2u);
}

TEST_F(PartialResultsTest, AreGoneWhenTheResultIsThere) {
  PartialResults results(path);
  results.add(0, "a", {1.0});
  results.remove();
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(PartialResultsTest, AFolderThatCannotBeWrittenIsToldAtOnce) {
  try {
    PartialResults results(folder_.path() + "/no/such/table.json.partial");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidSettings);
    EXPECT_EQ(error.param(), "--out");
  }
}

}  // namespace
}  // namespace bicached
