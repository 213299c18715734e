#include "base/version.h"

#define BICACHED_TEXT_OF(number) #number
#define BICACHED_TEXT(number) BICACHED_TEXT_OF(number)
#define BICACHED_NUMBERS(major, minor, patch) \
  BICACHED_TEXT(major) "." BICACHED_TEXT(minor) "." BICACHED_TEXT(patch)

namespace bicached {

const char* version() { return BICACHED_VERSION; }

const char* compiler() {
#ifdef __clang__  // which calls itself gcc 4.2 as well
  return "clang " BICACHED_NUMBERS(__clang_major__, __clang_minor__, __clang_patchlevel__);
#else
  return "gcc " BICACHED_NUMBERS(__GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#endif
}

}  // namespace bicached
