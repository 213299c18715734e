#pragma once

namespace bicached {

/// "0.2.0": the version of the build, from CMakeLists.txt.
const char* version();
/// "gcc 12.2.0", "clang 19.1.7": the compiler that built this.
const char* compiler();

}  // namespace bicached
