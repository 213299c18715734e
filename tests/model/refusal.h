#pragma once

#include <gtest/gtest.h>

#include <string>

#include "bicached/error.h"

namespace bicached::testing {

/// What a call refuses with; empty when it does not.
template <class Call>
std::string refusal(Call&& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidModel);
    return e.what();
  }
  return "";
}

}  // namespace bicached::testing
