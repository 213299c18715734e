#pragma once

#include "app/command_line.h"
#include "bicached/settings.h"

namespace bicached {

/// The subcommands. Each returns the exit status, or throws Error (main prints it and exits with
/// 2).
int run_serve(const Settings& settings);
int run_generate(const Settings& settings, const GenerateOptions& options);
int run_eval(const Settings& settings, const EvalOptions& options);
int run_profile(const Settings& settings, const ProfileOptions& options);
int run_info(const Settings& settings, const InfoOptions& options);

}  // namespace bicached
