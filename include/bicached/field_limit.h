#pragma once

namespace bicached {

/// What a number of a request may be.
struct FieldLimit {
  const char* name;  // as in a request
  double min;
  double max;
  bool min_allowed;  // false: the value must be greater than `min`
  bool is_integer;
  const char* unit;  // for messages; may be empty
};

}  // namespace bicached
