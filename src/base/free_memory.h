#pragma once

namespace bicached {

/// Gives freed memory back to the system, as far as whole pages are free. Some ms for each 100 MB.
/// Any thread.
void give_free_memory_back();

}  // namespace bicached
