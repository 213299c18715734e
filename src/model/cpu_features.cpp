#include "model/cpu_features.h"

#include <fstream>
#include <sstream>
#include <string>

namespace bicached {

bool cpu_multiplies_bfloat16() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      if (word == "avx512_bf16" || word == "amx_bf16") return true;
    }
    return false;
  }
  return false;
}

}  // namespace bicached
