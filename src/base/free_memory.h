#pragma once

#include <cstddef>

namespace bicached {

/// Sets the allocator so that freed memory stays for who asks next, until `give_free_memory_back`.
/// At a program's start.
void keep_freed_memory();

/// Gives freed memory back to the system, as far as whole pages are free. Some ms for each 100 MB.
/// Any thread; best the one that frees most.
void give_free_memory_back();

/// Gives the whole pages of a range back to the system, which hands out pages of zeros when they
/// are touched next. The range is the caller's own memory, and no file's. Any thread.
void drop_pages(void* begin, size_t num_bytes);

}  // namespace bicached
