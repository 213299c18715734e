#include "model/slab_allocator.h"

#include <gtest/gtest.h>

#include <new>
#include <random>
#include <set>
#include <vector>

#include "bicached/error.h"
#include "failing_memory.h"

namespace bicached {
namespace {

TEST(SlabAllocator, GivesContiguousRangesUntilFull) {
  SlabAllocator slabs(10);
  const auto a = slabs.open(4), b = slabs.open(6);
  ASSERT_TRUE(a && b);
  EXPECT_EQ(slabs.free_tokens(), 0);
  EXPECT_FALSE(slabs.open(1));
  slabs.check_integrity();
}

TEST(SlabAllocator, MergesNeighboursWhenGivenBack) {
  SlabAllocator slabs(12);
  const SlabId a = *slabs.open(4), b = *slabs.open(4), c = *slabs.open(4);
  slabs.close(a);
  slabs.close(c);
  EXPECT_FALSE(slabs.open(8)) << "two holes of 4 are not one of 8";
  slabs.close(b);
  EXPECT_TRUE(slabs.open(12));
  slabs.check_integrity();
}

TEST(SlabAllocator, TakesTheSmallestHoleThatFits) {
  SlabAllocator slabs(20);
  const SlabId big = *slabs.open(8);
  slabs.open(1);
  const SlabId small = *slabs.open(3);
  slabs.open(8);
  slabs.close(big);
  slabs.close(small);
  EXPECT_EQ(slabs.range(*slabs.open(3)).begin, 9) << "the hole of 8 stays whole";
}

TEST(SlabAllocator, RefusesWhatItNeverGave) {
  SlabAllocator slabs(4);
  const SlabId id = *slabs.open(2);
  slabs.close(id);
  EXPECT_THROW(slabs.close(id), Error);
  EXPECT_THROW(slabs.range(99), Error);
  EXPECT_FALSE(slabs.open(0));
  EXPECT_FALSE(slabs.open(-1));
}

TEST(SlabAllocator, StaysWholeWhereMemoryRunsOut) {
  SlabAllocator slabs(100);
  std::vector<SlabId> open;
  open.reserve(64);
  int num_failed = 0;
  for (int num_before = 0; num_before < 8; ++num_before) {
    for (int i = 0; i < 8; ++i) {
      failing_memory::begin(num_before, 1);
      try {
        if (const auto id = slabs.open(10)) open.push_back(*id);
      } catch (const std::bad_alloc&) {
        ++num_failed;
      }
      failing_memory::end();
      slabs.check_integrity();
    }
    failing_memory::begin(0, 100);
    while (!open.empty()) {  // the middle ones leave holes between slabs
      slabs.close(open[open.size() / 2]);
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(open.size() / 2));
    }
    EXPECT_FALSE(failing_memory::end()) << "to close needs no memory";
    slabs.check_integrity();
    EXPECT_EQ(slabs.free_tokens(), 100);
  }
  EXPECT_GT(num_failed, 8);
}

TEST(SlabAllocator, StaysWholeOverManyRandomSteps) {
  std::mt19937 random(7);
  SlabAllocator slabs(1000);
  std::vector<SlabId> open;
  for (int i = 0; i < 5000; ++i) {
    if (random() % 3 != 0 || open.empty()) {
      if (const auto id = slabs.open(1 + random() % 90)) open.push_back(*id);
    } else {
      const size_t at = random() % open.size();
      slabs.close(open[at]);
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
    }
    slabs.check_integrity();
  }
  for (const SlabId id : open) slabs.close(id);
  EXPECT_EQ(slabs.free_tokens(), 1000);
  EXPECT_TRUE(slabs.open(1000));
}

}  // namespace
}  // namespace bicached
