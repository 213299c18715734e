#include "app/build_info.h"

#include <ATen/Version.h>
#include <bicached_commit.h>  // made by cmake/Commit.cmake
#include <torch/csrc/api/include/torch/version.h>

#include "base/version.h"

namespace bicached {
namespace {

/// The version of the library that was loaded, which need not be the one that this was built with.
std::string loaded_torch() {
  const std::string config = at::show_config();
  const std::string name = "TORCH_VERSION=";
  const size_t begin = config.find(name);
  if (begin == std::string::npos) return "of unknown version";
  return config.substr(begin + name.size(),
                       config.find_first_of(", \n", begin) - begin - name.size());
}

}  // namespace

std::string describe_build(const std::string& program) {
  const std::string torch = loaded_torch();
  std::string text = program + " " + version() + "\ncommit " BICACHED_COMMIT "\ncompiler " +
                     compiler() + "\ntorch " + torch;
  if (torch != TORCH_VERSION) text += " (built with " TORCH_VERSION ")";
  return text;
}

}  // namespace bicached
