#pragma once

#include "app/command_line.h"

namespace bicached {

// The subcommands of `bicached`, one a file.
Command serve_command();
Command generate_command();
Command info_command();
Command settings_command();

}  // namespace bicached
