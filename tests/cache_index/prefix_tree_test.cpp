#include "cache_index/prefix_tree.h"

#include <gtest/gtest.h>

#include <random>

namespace bicached {
namespace {

using Ids = std::vector<TokenId>;
using Path = std::vector<PathStep>;

TEST(PrefixTree, TellsWherePromptsPart) {
  PrefixTree tree(1000);
  EXPECT_EQ(tree.add("", Ids{1, 2, 3, 4}), (Path{{4, 1}}));
  EXPECT_EQ(tree.add("", Ids{1, 2, 3, 9, 9}), (Path{{3, 2}, {5, 1}}));
  EXPECT_EQ(tree.add("", Ids{1, 2, 7}), (Path{{2, 3}, {3, 1}}));
  EXPECT_EQ(tree.find("", Ids{1, 2, 3, 4}), (Path{{2, 3}, {3, 2}, {4, 1}}));
  EXPECT_EQ(tree.find("", Ids{1, 2, 3, 9}), (Path{{2, 3}, {3, 2}, {4, 1}}));
  tree.check_integrity();
}

TEST(PrefixTree, CountsPromptsThatAreBeginningsOfOthers) {
  PrefixTree tree(1000);
  tree.add("", Ids{1, 2, 3, 4});
  EXPECT_EQ(tree.add("", Ids{1, 2}), (Path{{2, 2}}));
  EXPECT_EQ(tree.add("", Ids{1, 2, 3, 4, 5}), (Path{{2, 3}, {4, 2}, {5, 1}}));
  EXPECT_EQ(tree.add("", Ids{1, 2, 3, 4, 5}), (Path{{2, 4}, {4, 3}, {5, 2}}));
  const Path path = tree.find("", Ids{1, 2, 3, 4, 5});
  EXPECT_EQ(uses_at(path, 1), 4);
  EXPECT_EQ(uses_at(path, 3), 3);
  EXPECT_EQ(uses_at(path, 5), 2);
  EXPECT_EQ(uses_at(path, 6), 0);
  tree.check_integrity();
}

TEST(PrefixTree, SaltsAreApart) {
  PrefixTree tree(1000);
  tree.add("a", Ids{1, 2, 3});
  EXPECT_TRUE(tree.find("b", Ids{1, 2, 3}).empty());
  EXPECT_EQ(tree.add("b", Ids{1, 2, 3}), (Path{{3, 1}}));
}

TEST(PrefixTree, ForgetsTheOldestAndStaysBounded) {
  PrefixTree tree(64);
  std::mt19937 random(7);
  for (int i = 0; i < 3000; ++i) {
    Ids ids;
    const int length = 1 + static_cast<int>(random() % 40);
    for (int k = 0; k < length; ++k) ids.push_back(static_cast<TokenId>(random() % 3));
    tree.add(random() % 2 ? "x" : "", ids);
    ASSERT_NO_THROW(tree.check_integrity());
    ASSERT_LE(tree.num_tokens(), 64u + 40u);
    ASSERT_EQ(tree.find(random() % 2 ? "x" : "", {}).size(), 0u);
  }
  tree.add("", Ids(20, 9));
  EXPECT_FALSE(tree.find("", Ids(20, 9)).empty());
  for (TokenId i = 100; i < 110; ++i) tree.add("", Ids(20, i));
  EXPECT_TRUE(tree.find("", Ids(20, 9)).empty());
  tree.clear();
  EXPECT_EQ(tree.num_tokens(), 0u);
  tree.check_integrity();
}

}  // namespace
}  // namespace bicached
