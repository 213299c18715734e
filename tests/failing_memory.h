#pragma once

#include <cstdint>

namespace bicached::failing_memory {

/// A program with failing_memory.cpp in it has an operator new that fails when it is told to: after
/// `num_before` allocations `num_failing` in a row. Those of `spare_this_thread` never count.
void begin(int64_t num_before, int64_t num_failing);
/// Whether there were more than `num_before`.
bool end();
void spare_this_thread();

}  // namespace bicached::failing_memory
