#include "app/program.h"
#include "lab/commands.h"

int main(int argc, char** argv) {
  using namespace bicached;
  const Program program{"bicached-lab",
                        "Measures what cache policies of bicached gain and cost on a model.",
                        {eval_command(), profile_command()}};
  return run_program(program, argc, argv);
}
