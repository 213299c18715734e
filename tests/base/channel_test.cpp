#include "bicached/channel.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace bicached {
namespace {

using namespace std::chrono_literals;

TEST(Channel, ReturnsItemsInOrder) {
  Channel<int> channel(3);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(channel.try_push(int(i)));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(channel.pop(), i);
}

TEST(Channel, RefusesWhenFullAndLeavesTheItem) {
  Channel<std::vector<int>> channel(1);
  EXPECT_TRUE(channel.try_push({1}));
  std::vector<int> second{2, 3};
  EXPECT_FALSE(channel.try_push(std::move(second)));
  EXPECT_EQ(second.size(), 2u);
}

TEST(Channel, AfterCloseReturnsWhatIsLeftThenNothing) {
  Channel<int> channel(2);
  EXPECT_TRUE(channel.try_push(7));
  channel.close();
  EXPECT_FALSE(channel.try_push(8));
  EXPECT_FALSE(channel.is_done());
  EXPECT_EQ(channel.pop(), 7);
  EXPECT_EQ(channel.pop(), std::nullopt);
  EXPECT_TRUE(channel.is_done());
}

TEST(Channel, PopUntilGivesUpAtTheDeadline) {
  Channel<int> channel(1);
  const auto start = Channel<int>::Clock::now();
  EXPECT_EQ(channel.pop_until(start + 20ms), std::nullopt);
  EXPECT_GE(Channel<int>::Clock::now() - start, 20ms);
  EXPECT_FALSE(channel.is_done());
}

TEST(Channel, CloseWakesAWaitingPop) {
  Channel<int> channel(1);
  std::thread closer([&] {
    std::this_thread::sleep_for(10ms);
    channel.close();
  });
  EXPECT_EQ(channel.pop(), std::nullopt);
  closer.join();
}

TEST(Channel, LosesNothingBetweenThreads) {
  Channel<int> channel(8);
  constexpr int kItems = 20000;
  std::thread producer([&] {
    for (int i = 0; i < kItems; ++i) {
      while (!channel.try_push(int(i))) std::this_thread::yield();
    }
    channel.close();
  });
  int expected = 0;
  while (auto item = channel.pop()) EXPECT_EQ(*item, expected++);
  EXPECT_EQ(expected, kItems);
  producer.join();
}

}  // namespace
}  // namespace bicached
