#pragma once

#include <string>
#include <vector>

namespace bicached {

/// Names of the depth policies a request may ask for (`cache.policy`), in the order they are shown.
std::vector<std::string> depth_policy_names();

}  // namespace bicached
