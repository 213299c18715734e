#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace bicached {

/// The name of `known` that `name` most likely meant; empty when none is near enough to suggest.
std::string nearest_name(std::string_view name, const std::vector<std::string>& known);

}  // namespace bicached
