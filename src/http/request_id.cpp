#include "http/request_id.h"

#include <algorithm>
#include <cstdio>
#include <random>

namespace bicached {
namespace {

uint64_t random_bits() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

bool is_harmless(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' ||
         c == '_' || c == '-';
}

}  // namespace

RequestIds::RequestIds() : start_(random_bits()) {}

std::string RequestIds::make() {
  char text[40];
  std::snprintf(text, sizeof text, "%016llx%08llx", static_cast<unsigned long long>(start_),
                static_cast<unsigned long long>(++count_));
  return text;
}

std::string RequestIds::accept_or_make(const std::string& given) {
  const bool good =
      !given.empty() && given.size() <= 128 && std::all_of(given.begin(), given.end(), is_harmless);
  return good ? given : make();
}

}  // namespace bicached
