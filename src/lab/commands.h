#pragma once

#include "app/command_line.h"

namespace bicached {

// The subcommands of `bicached-lab`, one a file.
Command eval_command();
Command profile_command();

}  // namespace bicached
