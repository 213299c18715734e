#pragma once

namespace bicached {

/// The text of kernels.cu.
extern const char* const kKernelSource;

}  // namespace bicached
