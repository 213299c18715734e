#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>

#include "app/commands.h"
#include "app/program.h"

namespace bicached {
namespace {

/// `eval` and `profile` were commands of this program up to 0.1: scripts that call them go on.
void hand_over_to_lab(int argc, char** argv) {
  const std::string_view name = argc > 1 ? argv[1] : "";
  if (name != "eval" && name != "profile") return;
  std::error_code error;
  const std::string lab =
      std::filesystem::read_symlink("/proc/self/exe", error).parent_path() / "bicached-lab";
  std::fprintf(stderr, "%s is a command of bicached-lab\n", argv[1]);
  execv(lab.c_str(), argv);  // where it is not there the name is unknown
}

}  // namespace
}  // namespace bicached

int main(int argc, char** argv) {
  using namespace bicached;
  hand_over_to_lab(argc, argv);
  const Program program{"bicached",
                        "Serves masked-diffusion language models over the OpenAI HTTP API.",
                        {serve_command(), generate_command(), info_command(), settings_command()}};
  return run_program(program, argc, argv);
}
