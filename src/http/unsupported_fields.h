#pragma once

#include "config/json_fields.h"
#include "http/name_log.h"

namespace bicached {

/// Refuses, by name, what constrains or changes the output and can't be done; a value that asks for
/// nothing is fine. Tools are answered in text, and refused only where a call is demanded.
void refuse_unsupported_fields(Fields& fields, NameLog& log);

/// `value` must ask for nothing: else kUnsupportedParameter, "<field>: <why>".
void refuse_unless(bool asks_for_nothing, const std::string& field, const std::string& why);

/// Null, or empty: "", [], {}, false.
bool is_nothing(const nlohmann::json& value);

}  // namespace bicached
