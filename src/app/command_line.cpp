#include "app/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <vector>

#include "app/build_info.h"
#include "app/flag_values.h"
#include "base/text_distance.h"
#include "bicached/error.h"

namespace bicached {
namespace {

/// The flags of one subcommand that stand for settings.
using SettingFlags = std::map<std::string, CLI::Option*>;

/// Adds the settings that a subcommand takes as flags, grouped in --help as declared.
SettingFlags add_settings(CLI::App& command, const Command& about, std::string& config_file,
                          std::string& model) {
  SettingFlags flags;
  command.allow_extras();  // reported by ourselves, with the nearest name
  command.add_option("MODEL", model, "Model folder; the same as --model");
  command.add_option("--config", config_file, "JSON file of settings (BICACHED_CONFIG)")
      ->type_name("FILE");
  for (const SettingInfo& info : setting_table()) {
    const bool is_taken =
        about.setting_groups.empty() || contains(about.setting_groups, info.group);
    if (!is_taken || contains(about.decides, info.name)) continue;
    const std::string flag = flag_name(info.name);
    CLI::Option* option = nullptr;
    if (info.kind == SettingKind::kSwitch) {
      option = command.add_flag(flag + ",!--no-" + flag.substr(2), info.about);
    } else {
      const std::string values = describe_values(info);
      option = command.add_option(flag, info.about)->type_name(values.empty() ? "TEXT" : values);
      if (!info.default_text.empty()) option->default_str(info.default_text);
      option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    }
    option->group(info.group);
    flags.emplace(info.name, option);
  }
  return flags;
}

void add_flag(CLI::App& command, const CommandFlag& flag) {
  CLI::Option* option = nullptr;
  if (const auto* is_on = std::get_if<bool*>(&flag.value)) {
    option = command.add_flag(flag.name, **is_on, flag.about);
  } else if (const auto* text = std::get_if<std::string*>(&flag.value)) {
    option = command.add_option(flag.name, **text, flag.about)->type_name(flag.type);
    if (!(*text)->empty()) option->default_str(**text);
  } else {
    auto* given = std::get<std::optional<std::string>*>(flag.value);
    option = command.add_option(flag.name, *given, flag.about)->type_name(flag.type);
  }
  option->group(flag.group);
}

/// `given` is not among what `name`, a program or one of its commands, knows.
[[noreturn]] void refuse_unknown(const std::string& given, const std::string& name,
                                 const std::vector<std::string>& known) {
  const std::string near = nearest_name(given.substr(0, given.find('=')), known);
  throw Error(ErrorCode::kInvalidSettings,
              "'" + given + "' is not known to " + name +
                  (near.empty() ? "." : "; did you mean " + near + "?") + " See " + name +
                  " --help");
}

void check_extras(const std::string& program, const CLI::App& command) {
  std::vector<std::string> known;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& long_name : option->get_lnames()) known.push_back("--" + long_name);
  }
  for (const std::string& extra : command.remaining()) {
    refuse_unknown(extra, program + " " + command.get_name(), known);
  }
}

/// The library only says that a subcommand is missing.
void check_subcommand(const Program& program, int argc, const char* const* argv) {
  std::vector<std::string> known{"--help", "--version"};
  for (const Command& command : program.commands) known.emplace_back(command.name);
  if (argc > 1 && !contains(known, argv[1])) refuse_unknown(argv[1], program.name, known);
}

std::vector<std::pair<std::string, std::string>> given(const SettingFlags& flags,
                                                       const std::string& model) {
  std::vector<std::pair<std::string, std::string>> values;
  if (!model.empty()) values.emplace_back("model", model);
  for (const auto& [name, option] : flags) {
    if (name == "model" && option->count() > 0 && !model.empty()) {
      throw Error(ErrorCode::kInvalidSettings,
                  "the model is given twice, as '" + model + "' and with --model: give one",
                  "model");
    }
    if (option->count() > 0) values.emplace_back(name, option->results().back());
  }
  return values;
}

}  // namespace

CommandLine parse_command_line(const Program& program, int argc, const char* const* argv) {
  CommandLine line;
  std::string model;
  CLI::App app(program.about, program.name);
  app.set_version_flag("--version", [&] { return describe_build(program.name); });
  app.require_subcommand(1);
  app.footer(
      "Settings also come from the environment (BICACHED_PORT) and from a JSON file "
      "(--config);\nthe order is flag, environment, file, default.");
  std::map<std::string, SettingFlags> flags;
  for (const Command& about : program.commands) {
    CLI::App& command = *app.add_subcommand(about.name, about.about);
    flags[about.name] = add_settings(command, about, line.sources.config_file, model);
    for (const CommandFlag& flag : about.flags) add_flag(command, flag);
  }

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& done) {  // --help, --version
    app.exit(done);
    return line;
  } catch (const CLI::ParseError& error) {
    const auto used = app.get_subcommands();
    if (used.empty()) check_subcommand(program, argc, argv);
    for (const CLI::App* command : used) check_extras(program.name, *command);
    std::string message = error.what();
    // "--port: 1 required 0 to 65535 missing"
    if (dynamic_cast<const CLI::ArgumentMismatch*>(&error)) {
      message = message.substr(0, message.find(':')) + " needs a value";
    }
    throw Error(ErrorCode::kInvalidSettings,
                message + ". See " + program.name + " " +
                    (used.empty() ? "" : used.front()->get_name() + " ") + "--help");
  }
  const CLI::App& command = *app.get_subcommands().front();
  check_extras(program.name, command);
  line.command = &*std::ranges::find(program.commands, command.get_name(),
                                     [](const Command& one) { return std::string(one.name); });
  line.sources.flags = given(flags[command.get_name()], model);
  return line;
}

}  // namespace bicached
