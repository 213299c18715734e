#pragma once

namespace bicached {

/// "0.1.0": the version of the build, from CMakeLists.txt.
const char* version();

}  // namespace bicached
