#pragma once

#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "config/settings_io.h"

namespace bicached {

/// A flag of one subcommand that is no setting. Its value stays text: the subcommand checks it.
struct CommandFlag {
  const char* name;  // "--limit"
  const char* about;
  std::variant<std::string*, std::optional<std::string>*, bool*> value;  // a text is its default
  const char* group = "Options";
  const char* type = "TEXT";
};

/// A subcommand.
struct Command {
  const char* name;
  const char* about;
  /// Returns the exit status, or throws Error (the program prints it and exits with 2).
  std::function<int(const Settings&)> run;
  std::vector<CommandFlag> flags = {};
  /// The settings that are flags too, by group. Empty: all.
  std::vector<std::string> setting_groups = {};
  /// Settings of these groups that the subcommand decides itself.
  std::vector<std::string> decides = {};
  bool computes = true;     // runs the model
  bool takes_model = true;  // its folder is found before `run`
};

/// The groups of settings of a subcommand that runs the model and serves nobody.
inline const std::vector<std::string> kDecodingGroups = {"Model", "Engine", "Decoding defaults",
                                                         "Prefix cache", "Log"};

struct Program {
  const char* name;
  const char* about;
  std::vector<Command> commands;
};

/// A parsed command line. Values of settings are still text: load_settings checks them together
/// with the environment and the file.
struct CommandLine {
  const Command* command = nullptr;  // null: help or version was printed and nothing is to do
  SettingSources sources;
};

/// Also writes the values of the subcommand's own flags. Throws kInvalidSettings for what can't be
/// parsed; an unknown flag names the nearest one.
CommandLine parse_command_line(const Program& program, int argc, const char* const* argv);

}  // namespace bicached
