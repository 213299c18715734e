#include "config/limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

namespace bicached {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Limits, EndsAreInAndWhatLiesBeyondIsOut) {
  for (const FieldLimit& limit : field_limits()) {
    const double step = limit.is_integer ? 1 : 1e-3;
    EXPECT_NO_THROW(check_field(limit.name, limit.max)) << limit.name;
    EXPECT_THROW(check_field(limit.name, limit.max + step), Error) << limit.name;
    EXPECT_THROW(check_field(limit.name, limit.min - step), Error) << limit.name;
    if (limit.min_allowed) {
      EXPECT_NO_THROW(check_field(limit.name, limit.min)) << limit.name;
    } else {
      EXPECT_THROW(check_field(limit.name, limit.min), Error) << limit.name;
      EXPECT_NO_THROW(check_field(limit.name, limit.min + step)) << limit.name;
    }
    EXPECT_THROW(check_field(limit.name, std::nan("")), Error) << limit.name;
    EXPECT_THROW(check_field(limit.name, std::numeric_limits<double>::infinity()), Error);
    if (limit.is_integer) {
      EXPECT_THROW(check_field(limit.name, limit.min + 0.5), Error) << limit.name;
    }
  }
}

TEST(Limits, MessageNamesFieldValueAndRange) {
  try {
    check_field("threshold", 1.5);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidRequest);
    EXPECT_EQ(error.param(), "threshold");
    EXPECT_THAT(error.what(), AllOf(HasSubstr("threshold is 1.5"), HasSubstr("more than 0"),
                                    HasSubstr("at most 1")));
  }
}

TEST(Limits, UnknownFieldIsADefectNotARequestError) {
  try {
    check_field("no_such_field", 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInternal);
  }
}

TEST(Limits, ParamsAreCheckedFieldByField) {
  const auto param_of = [](const std::function<void(DecodeParams&, SamplingParams&, int&)>& spoil) {
    DecodeParams decode;
    SamplingParams sampling;
    int gen_length = 64;
    spoil(decode, sampling, gen_length);
    try {
      check_params(decode, sampling, gen_length);
    } catch (const Error& error) {
      return error.param();
    }
    return std::string();
  };
  EXPECT_EQ(param_of([](auto&, auto&, int&) {}), "");
  EXPECT_EQ(param_of([](auto&, auto&, int& length) { length = 0; }), "max_tokens");
  EXPECT_EQ(param_of([](auto& decode, auto&, int&) { decode.steps = 0; }), "steps");
  EXPECT_EQ(param_of([](auto& decode, auto&, int&) { decode.block_length = 0; }), "block_length");
  EXPECT_EQ(param_of([](auto& decode, auto&, int&) { decode.params["threshold"] = 0; }),
            "threshold");
  EXPECT_EQ(param_of([](auto& decode, auto&, int&) { decode.params["factor"] = 0; }), "factor");
  EXPECT_EQ(param_of([](auto&, auto& sampling, int&) { sampling.temperature = 3; }), "temperature");
  EXPECT_EQ(param_of([](auto&, auto& sampling, int&) { sampling.top_p = -0.5f; }), "top_p");
  EXPECT_EQ(param_of([](auto&, auto& sampling, int&) { sampling.top_k = -2; }), "top_k");
  EXPECT_EQ(param_of([](auto&, auto& sampling, int&) { sampling.num_top_logprobs = 21; }),
            "top_logprobs");
  EXPECT_EQ(param_of([](auto&, auto& sampling, int&) { sampling.logit_bias = {{1, 101.0f}}; }),
            "logit_bias");
}

}  // namespace
}  // namespace bicached
