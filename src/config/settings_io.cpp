#include "config/settings_io.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <type_traits>

#include "base/json_file.h"
#include "base/text_distance.h"
#include "base/text_list.h"
#include "bicached/error.h"

namespace bicached {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kPrefix = "BICACHED_";
constexpr const char* kConfigVariable = "BICACHED_CONFIG";

std::string number_text(double value) {
  // 1000000000000000, not 1e+15: what can be pasted back.
  if (value == std::floor(value) && std::abs(value) < 1e18) {
    return std::to_string(static_cast<int64_t>(value));
  }
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.15g", value);
  return buffer;
}

std::string to_text(const std::string& value) { return value; }
std::string to_text(bool value) { return value ? "true" : "false"; }
std::string to_text(double value) { return number_text(value); }
std::string to_text(int value) { return std::to_string(value); }
std::string to_text(int64_t value) { return std::to_string(value); }
std::string to_text(const std::vector<std::string>& value) { return joined(value, ","); }

/// Whether `text` is the choice `known`, in which a final ":N" stands for a number.
bool is_choice(std::string_view text, std::string_view known) {
  if (!known.ends_with(":N")) return text == known;
  known.remove_suffix(1);
  if (!text.starts_with(known)) return false;
  text.remove_prefix(known.size());
  return parsed<unsigned char>(text).has_value();  // no machine has more cards
}

/// Visitor: the declaration as data.
class Lister {
 public:
  std::vector<SettingInfo> table;

  template <class Group>
  void group(const char* title, Group& settings) {
    group_ = title;
    settings.visit(*this);
  }
  void field(const char* name, std::string& value, const char* about) {
    add(name, SettingKind::kText, value, about);
  }
  void field(const char* name, std::vector<std::string>& value, const char* about) {
    add(name, SettingKind::kList, value, about);
  }
  void field(const char* name, bool& value, const char* about) {
    add(name, SettingKind::kSwitch, value, about);
  }
  template <class Number>
  void field(const char* name, Number& value, Range range, const char* unit, const char* about) {
    constexpr bool kWhole = std::is_integral_v<Number>;
    SettingInfo& info =
        add(name, kWhole ? SettingKind::kInteger : SettingKind::kNumber, value, about);
    info.range = range;
    info.unit = unit;
  }
  void choice(const char* name, std::string& value, std::initializer_list<const char*> names,
              const char* about) {
    add(name, SettingKind::kChoice, value, about).choices.assign(names.begin(), names.end());
  }

 private:
  template <class T>
  SettingInfo& add(const char* name, SettingKind kind, const T& value, const char* about) {
    SettingInfo info;
    info.group = group_;
    info.name = name;
    info.kind = kind;
    info.about = about;
    info.default_text = to_text(value);
    return table.emplace_back(std::move(info));
  }

  std::string group_;
};

/// Visitor: the values as JSON.
class Writer {
 public:
  Json json = Json::object();

  template <class Group>
  void group(const char*, Group& settings) {
    settings.visit(*this);
  }
  template <class T>
  void field(const char* name, T& value, const char*) {
    json[name] = value;
  }
  template <class Number>
  void field(const char* name, Number& value, Range, const char*, const char*) {
    json[name] = value;
  }
  void choice(const char* name, std::string& value, std::initializer_list<const char*>,
              const char*) {
    json[name] = value;
  }
};

/// Visitor: sets one setting from a JSON value, or from text (flag, environment).
class Setter {
 public:
  Setter(std::string name, nlohmann::json value, bool is_text, std::string origin)
      : name_(std::move(name)),
        value_(std::move(value)),
        is_text_(is_text),
        origin_(std::move(origin)) {}

  bool found() const { return found_; }

  template <class Group>
  void group(const char*, Group& settings) {
    settings.visit(*this);
  }
  void field(const char* name, std::string& value, const char*) {
    if (!is_mine(name)) return;
    if (!value_.is_string()) fail("a string");
    value = value_.get<std::string>();
  }
  void field(const char* name, std::vector<std::string>& value, const char*) {
    if (!is_mine(name)) return;
    value = is_text_ ? names_in(value_.get<std::string>()) : strings();
  }
  void field(const char* name, bool& value, const char*) {
    if (!is_mine(name)) return;
    if (value_.is_boolean()) {
      value = value_.get<bool>();
    } else if (is_text_ && (value_ == "true" || value_ == "1" || value_ == "on")) {
      value = true;
    } else if (is_text_ && (value_ == "false" || value_ == "0" || value_ == "off")) {
      value = false;
    } else {
      fail("true or false");
    }
  }
  template <class Number>
  void field(const char* name, Number& value, Range range, const char* unit, const char*) {
    if (!is_mine(name)) return;
    constexpr bool kWhole = std::is_integral_v<Number>;
    const std::string allowed = std::string(kWhole ? "a whole number, " : "a number, ") +
                                number_text(range.min) + " to " + number_text(range.max) +
                                (*unit ? " " : "") + unit;
    const double number = as_number(allowed);
    const bool in_range = number >= range.min && number <= range.max;  // false for NaN
    if (!in_range || (kWhole && number != std::floor(number))) fail(allowed);
    value = static_cast<Number>(number);
  }
  void choice(const char* name, std::string& value, std::initializer_list<const char*> names,
              const char*) {
    if (!is_mine(name)) return;
    const auto matches = [this](const char* known) {
      return is_choice(value_.get_ref<const std::string&>(), known);
    };
    if (!value_.is_string() || std::ranges::none_of(names, matches)) {
      fail("one of " + joined({names.begin(), names.end()}));
    }
    value = value_.get<std::string>();
  }

 private:
  bool is_mine(const char* name) {
    if (name_ != name) return false;
    found_ = true;
    return true;
  }

  double as_number(const std::string& allowed) const {
    if (value_.is_number()) return value_.get<double>();
    const auto number = is_text_ ? parsed<double>(value_.get<std::string>()) : std::nullopt;
    if (!number) fail(allowed);
    return *number;
  }

  std::vector<std::string> strings() const {
    std::vector<std::string> items;
    if (value_.is_string()) return {value_.get<std::string>()};  // a list of one
    if (!value_.is_array()) fail("a list of strings");
    for (const auto& item : value_) {
      if (!item.is_string()) fail("a list of strings");
      items.push_back(item.get<std::string>());
    }
    return items;
  }

  static std::vector<std::string> names_in(const std::string& text) {
    std::vector<std::string> names;
    for (const std::string_view name : split_at(text, ',')) {
      if (!name.empty()) names.emplace_back(name);
    }
    return names;
  }

  [[noreturn]] void fail(const std::string& allowed) const {
    std::string shown = is_text_
                            ? value_.get<std::string>()
                            : value_.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    if (shown.size() > 100) shown = shown.substr(0, 100) + "...";
    throw Error(ErrorCode::kInvalidSettings,
                name_ + " is '" + shown + "' (from " + origin_ + "); allowed is " + allowed, name_);
  }

  std::string name_;
  nlohmann::json value_;
  bool is_text_;
  std::string origin_;
  bool found_ = false;
};

std::vector<std::string> setting_names() {
  std::vector<std::string> names;
  for (const SettingInfo& info : setting_table()) names.push_back(info.name);
  return names;
}

[[noreturn]] void fail_unknown(const std::string& what, const std::string& name,
                               const std::string& suggestion) {
  std::string message = what + " is not known";
  if (!suggestion.empty()) message += "; did you mean " + suggestion + "?";
  throw Error(ErrorCode::kInvalidSettings, message, name);
}

void apply_file(Settings& settings, const std::string& path) {
  const nlohmann::json file =
      name_errors("config", [&] { return read_json_file(path, ErrorCode::kInvalidSettings); });
  if (!file.is_object()) {
    throw Error(ErrorCode::kInvalidSettings,
                path + ": must be one JSON object whose keys are settings");
  }
  for (const auto& [key, value] : file.items()) {
    Setter setter(key, value, false, path);
    settings.visit(setter);
    if (!setter.found()) {
      fail_unknown(path + ": the key \"" + key + "\"", key, nearest_name(key, setting_names()));
    }
  }
}

void apply_environment(Settings& settings,
                       const std::vector<std::pair<std::string, std::string>>& environment) {
  std::vector<std::string> known = {kConfigVariable};
  for (const std::string& name : setting_names()) known.push_back(environment_name(name));
  for (const auto& [variable, value] : environment) {
    if (!variable.starts_with(kPrefix) || variable == kConfigVariable) continue;
    if (value.empty()) continue;  // compose files pass a variable that is not set as an empty one
    if (std::ranges::find(known, variable) == known.end()) {
      fail_unknown("the environment variable " + variable, variable, nearest_name(variable, known));
    }
    std::string name = variable.substr(kPrefix.size());
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
    Setter setter(name, value, true, "environment variable " + variable);
    settings.visit(setter);
  }
}

void apply_flags(Settings& settings,
                 const std::vector<std::pair<std::string, std::string>>& flags) {
  for (const auto& [name, value] : flags) {
    Setter setter(name, value, true, "flag " + flag_name(name));
    settings.visit(setter);
    if (!setter.found()) {
      const std::string near = nearest_name(name, setting_names());
      fail_unknown("the flag " + flag_name(name), name, near.empty() ? near : flag_name(near));
    }
  }
}

std::string escape_cell(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

std::vector<SettingInfo> setting_table() {
  Lister lister;
  Settings defaults;
  defaults.visit(lister);
  return std::move(lister.table);
}

std::string flag_name(const std::string& setting) {
  std::string flag = "--" + setting;
  std::ranges::replace(flag, '_', '-');
  return flag;
}

std::string environment_name(const std::string& setting) {
  std::string name = std::string(kPrefix) + setting;
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::toupper(c); });
  return name;
}

std::string describe_values(const SettingInfo& info) {
  switch (info.kind) {
    case SettingKind::kText: return "";
    case SettingKind::kList: return "list, by commas";
    case SettingKind::kSwitch: return "true or false";
    case SettingKind::kChoice: return joined(info.choices);
    case SettingKind::kInteger:
    case SettingKind::kNumber: break;
  }
  return number_text(info.range->min) + " to " + number_text(info.range->max) +
         (info.unit.empty() ? "" : " " + info.unit);
}

std::vector<std::pair<std::string, std::string>> read_environment() {
  std::vector<std::pair<std::string, std::string>> environment;
  for (char** entry = environ; entry && *entry; ++entry) {
    const std::string_view text(*entry);
    const size_t equals = text.find('=');
    if (equals == std::string_view::npos) continue;
    environment.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  return environment;
}

Settings load_settings(const SettingSources& sources) {
  std::string path = sources.config_file;
  for (const auto& [variable, value] : sources.environment) {
    if (path.empty() && variable == kConfigVariable) path = value;
  }
  Settings settings;
  if (!path.empty()) apply_file(settings, path);
  apply_environment(settings, sources.environment);
  apply_flags(settings, sources.flags);
  return settings;
}

std::string settings_to_json(const Settings& settings) {
  Writer writer;
  Settings copy = settings;  // visit() is for reading and writing, so it wants a mutable one
  copy.visit(writer);
  return writer.json.dump(2, ' ', false, Json::error_handler_t::replace);
}

std::string settings_to_markdown() {
  std::string text;
  std::string group;
  for (const SettingInfo& info : setting_table()) {
    if (info.group != group) {
      group = info.group;
      text += (text.empty() ? "" : "\n") + std::string("**") + group +
              "**\n\n| setting | default | allowed | what |\n| --- | --- | --- | --- |\n";
    }
    const std::string shown = info.default_text.empty() ? "" : "`" + info.default_text + "`";
    text += "| `" + info.name + "` | " + shown + " | " + escape_cell(describe_values(info)) +
            " | " + escape_cell(info.about) + " |\n";
  }
  text += "\n**Decoding algorithms**\n\n| `algorithm` | parameters | what |\n| --- | --- | --- |\n";
  for (const UnmaskerInfo& info : unmasker_table()) {
    std::string params;
    for (const UnmaskerParam& param : info.params) {
      params += (params.empty() ? "`" : ", `") + std::string(param.limit.name) + "`";
    }
    text +=
        "| `" + std::string(info.name) + "` | " + params + " | " + escape_cell(info.about) + " |\n";
  }
  return text;
}

}  // namespace bicached
