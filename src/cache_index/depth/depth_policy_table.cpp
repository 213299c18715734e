#include "bicached/depth_policy.h"

namespace bicached {

std::vector<std::string> depth_policy_names() { return {"off"}; }

}  // namespace bicached
