#pragma once

#include "app/command_line.h"

namespace bicached {

/// `main` of a program: settings from flags, environment and file, the log, the subcommand. Prints
/// what goes wrong and returns 2 then.
int run_program(const Program& program, int argc, char** argv);

}  // namespace bicached
