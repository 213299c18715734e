#include "base/spare_memory.h"

#include <gtest/gtest.h>

#include <exception>
#include <new>
#include <string>

#include "base/free_memory.h"

namespace bicached {
namespace {

/// Whether the handler lets `operator new` try once more.
bool helps() {
  try {
    std::get_new_handler()();
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

/// Asks while an exception is on its way.
struct AsksInDestructor {
  bool& helped;
  ~AsksInDestructor() { helped = helps(); }
};

bool helps_an_exception() {
  bool helped = false;
  try {
    const AsksInDestructor asks{helped};
    throw std::bad_alloc();
  } catch (const std::bad_alloc&) {
    return helped;
  }
}

TEST(FreeText, LeavesNoRoom) {
  std::string text(1 << 20, 'x');
  free_text(text);
  EXPECT_EQ(text.capacity(), std::string().capacity());
}

TEST(SpareMemory, IsThereOnceForWorkAndOnceForExceptionsUntilItIsRefilled) {
  set_memory_aside();
  for (int round = 0; round < 2; ++round) {
    EXPECT_TRUE(helps());
    EXPECT_FALSE(helps());
    EXPECT_TRUE(helps_an_exception());
    EXPECT_FALSE(helps_an_exception());
    refill_spare_memory();
  }
  std::set_new_handler(nullptr);
}

}  // namespace
}  // namespace bicached
