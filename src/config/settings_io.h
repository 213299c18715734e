#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bicached/settings.h"

namespace bicached {

enum class SettingKind { kText, kList, kSwitch, kInteger, kNumber, kChoice };

/// One line of the declaration in settings.h, as data: for --help, docs/settings.md and messages.
struct SettingInfo {
  std::string group;
  std::string name;  // key of the JSON file
  SettingKind kind = SettingKind::kText;
  std::optional<Range> range;  // numbers
  std::string unit;            // may be empty
  std::vector<std::string> choices;
  std::string about;
  std::string default_text;  // as it would be written on the command line
};

/// Every setting, in the order of the declaration.
std::vector<SettingInfo> setting_table();

/// "kv_cache_bytes" -> "--kv-cache-bytes" and "BICACHED_KV_CACHE_BYTES".
std::string flag_name(const std::string& setting);
std::string environment_name(const std::string& setting);
/// "0 to 65535 port", "auto, cpu, cuda, cuda:N", "true or false"; empty for free text.
std::string describe_values(const SettingInfo& info);

/// Where settings may come from besides their defaults.
struct SettingSources {
  std::string config_file;  // empty: BICACHED_CONFIG of the environment, else none
  std::vector<std::pair<std::string, std::string>> environment;  // all of it; BICACHED_* counts
  std::vector<std::pair<std::string, std::string>> flags;        // setting name, value
};

/// The process's environment as SettingSources wants it.
std::vector<std::pair<std::string, std::string>> read_environment();

/// Flag > environment > file > default. The file is one flat JSON object whose keys are the
/// settings' names; a list is an array (in the environment and flags: separated by commas).
///
/// An empty variable of the environment is none.
///
/// Throws kInvalidSettings (param = the setting) naming setting, value, what is allowed and where
/// it came from; an unknown key, flag or BICACHED_ variable names the nearest known one.
Settings load_settings(const SettingSources& sources);

/// All settings as a flat JSON object that `--config` would take. Paths of secrets are in it, what
/// these files hold is not.
std::string settings_to_json(const Settings& settings);

/// The tables of docs/settings.md.
std::string settings_to_markdown();

}  // namespace bicached
