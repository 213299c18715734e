#pragma once

namespace bicached {

/// The text of all *.cu files, which are one program.
extern const char* const kKernelSource;

}  // namespace bicached
