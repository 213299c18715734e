#include "base/version.h"

namespace bicached {

const char* version() { return BICACHED_VERSION; }

}  // namespace bicached
