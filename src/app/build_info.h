#pragma once

#include <string>

namespace bicached {

/// What `bicached --version` prints: "bicached 0.2.0", then commit, compiler and the libtorch that
/// was loaded, a line each.
std::string describe_build();

}  // namespace bicached
