#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace bicached {

/// Edit distance of two names (insert, delete, replace, swap of neighbours), at most 64 bytes each.
int edit_distance(std::string_view a, std::string_view b);

/// The name of `known` that `name` most likely meant; empty when none is near enough to suggest.
std::string nearest_name(std::string_view name, const std::vector<std::string>& known);

}  // namespace bicached
