#pragma once

namespace bicached {

/// Sets address space aside for the moment at which memory runs out (`operator new` finds none).
/// The JSON library needs memory to destroy a value, and ends the process where there is none. So
/// the first allocation that fails gets what was set aside, and so does the first one that fails
/// while an exception is on its way. Whatever fails then is an exception. At a program's start.
void set_memory_aside();

/// Sets aside anew what was used. Any thread, now and then.
void refill_spare_memory() noexcept;

}  // namespace bicached
