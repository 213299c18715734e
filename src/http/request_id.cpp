#include "http/request_id.h"

#include <cstdio>
#include <random>
#include <string_view>

namespace bicached {
namespace {

uint64_t random_bits() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

constexpr std::string_view kHarmless =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

}  // namespace

RequestIds::RequestIds() : start_(random_bits()) {}

std::string RequestIds::make() {
  char text[40];
  std::snprintf(text, sizeof text, "%016llx%08llx", static_cast<unsigned long long>(start_),
                static_cast<unsigned long long>(++count_));
  return text;
}

std::string RequestIds::accept_or_make(const std::string& given) {
  const bool good = !given.empty() && given.size() <= 128 &&
                    given.find_first_not_of(kHarmless) == std::string::npos;
  return good ? given : make();
}

}  // namespace bicached
