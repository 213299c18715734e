#pragma once

#include <string>

namespace bicached {

/// What `--version` of a program prints: "bicached 0.2.0", then commit, compiler and the libtorch
/// that was loaded, a line each.
std::string describe_build(const std::string& program);

}  // namespace bicached
