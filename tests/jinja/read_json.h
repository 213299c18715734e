#pragma once

#include <string_view>

#include "text/jinja/value.h"

/// Reads JSON as templates see it: members in their order, integers of any size. Throws
/// TemplateError when it isn't JSON.
bicached::jinja::Value read_json_value(std::string_view text);
