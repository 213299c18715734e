#include "app/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <vector>

#include "base/text_distance.h"
#include "base/version.h"
#include "bicached/error.h"

namespace bicached {
namespace {

const std::vector<std::string> kDecodingGroups = {"Model", "Engine", "Decoding defaults",
                                                  "Prefix cache", "Log"};

/// The flags of one subcommand that stand for settings.
using SettingFlags = std::map<std::string, CLI::Option*>;

/// Adds the settings of these groups (empty: all) as flags, grouped in --help as declared.
SettingFlags add_settings(CLI::App& command, const std::vector<std::string>& groups,
                          std::string& config_file, std::string& model) {
  SettingFlags flags;
  command.allow_extras();  // reported by ourselves, with the nearest name
  command.add_option("MODEL", model, "Model folder; the same as --model");
  command.add_option("--config", config_file, "JSON file of settings (BICACHED_CONFIG)")
      ->type_name("FILE");
  for (const SettingInfo& info : setting_table()) {
    if (!groups.empty() && std::find(groups.begin(), groups.end(), info.group) == groups.end()) {
      continue;
    }
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

void check_extras(const CLI::App& command) {
  for (const std::string& extra : command.remaining()) {
    std::string message = "'" + extra + "' is not known to bicached " + command.get_name();
    std::vector<std::string> known;
    for (const CLI::Option* option : command.get_options()) {
      for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
    }
    const std::string near = nearest_name(extra.substr(0, extra.find('=')), known);
    if (!near.empty()) message += "; did you mean " + near + "?";
    throw Error(ErrorCode::kInvalidSettings,
                message + " See bicached " + command.get_name() + " --help");
  }
}

void add_generate_options(CLI::App& command, GenerateOptions& options) {
  const std::string group = "Input (one of --prompt, --chat, --tokens)";
  command.add_option("--prompt", options.prompt, "Raw prompt; - reads standard input")
      ->group(group);
  command.add_option("--chat", options.chat, "User message of a chat; - reads standard input")
      ->group(group);
  command.add_option("--system", options.system, "System message before --chat")->group(group);
  command.add_option("--tokens", options.tokens, "Raw prompt as token ids")
      ->type_name("1,2,3")
      ->group(group);
  command.add_option("--suffix", options.suffix, "Text after the masks: infilling")->group(group);
  const std::string sampling = "Sampling";
  command.add_option("--seed", options.seed, "With it the same text again")->group(sampling);
  command
      .add_option("--top-p", options.top_p,
                  "Least set of tokens of this probability; the model's unless given")
      ->group(sampling);
  command
      .add_option("--top-k", options.top_k,
                  "Most probable tokens; 0 = all; the model's unless given")
      ->group(sampling);
  command.add_flag("--ignore-eos", options.ignore_eos, "Never choose an end token")
      ->group(sampling);
  command.add_flag("--json", options.json, "Ids, commits of every forward and timings as JSON");
}

/// Settings that a subcommand decides itself.
void remove_settings(CLI::App& command, SettingFlags& flags,
                     std::initializer_list<const char*> names) {
  for (const char* name : names) {
    command.remove_option(flags.at(name));
    flags.erase(name);
  }
}

void add_eval_options(CLI::App& command, SettingFlags& flags, EvalOptions& options) {
  // --policies says the first two; the others are the server's alone.
  remove_settings(command, flags, {"cache_policy", "cache_depth", "pinned_prefixes"});
  const std::string input = "Questions";
  command.add_option("--data", options.data, "JSONL file: messages, answer, gen_length, family")
      ->type_name("FILE")
      ->group(input);
  command.add_option("--limit", options.limit, "The first so many only")->group(input);
  command.add_option("--families", options.families, "Only these")->type_name("A,B")->group(input);
  command.add_option("--without-families", options.without_families, "But not these")
      ->type_name("A,B")
      ->group(input);
  command.add_option("--gen-length", options.gen_length, "Of every request; not the file's")
      ->group(input);
  const std::string runs = "Runs";
  command
      .add_option("--policies", options.policies,
                  "Sides of the comparison: off, fixed:N, full, table, measured")
      ->default_str(options.policies)
      ->group(runs);
  command.add_option("--concurrency", options.concurrency, "Requests at a time")
      ->default_str(options.concurrency)
      ->group(runs);
  command.add_option("--rounds", options.rounds, "All runs so often; speeds are medians")
      ->default_str(options.rounds)
      ->group(runs);
  command.add_option("--warmup", options.warmup, "Questions before the first run, not counted")
      ->default_str(options.warmup)
      ->group(runs);
  const std::string output = "Output";
  command.add_flag("--by-family", options.by_family, "Answers by family too")->group(output);
  command.add_option("--json", options.json, "Results as JSON")->type_name("FILE")->group(output);
}

void add_profile_options(CLI::App& command, SettingFlags& flags, ProfileOptions& options) {
  // The policy is what is profiled, every conversation is probed, and --threshold is of similarity;
  // the decoding threshold still comes from the model, the environment or the file.
  remove_settings(command, flags,
                  {"threshold", "cache_policy", "cache_depth", "depth_table", "min_uses",
                   "pinned_prefixes", "probe_budget", "deterministic"});
  const std::string group = "Profile";
  command
      .add_option("--by", options.by,
                  "similarity: a depth table, for the policy table; decisions: probes of every "
                  "conversation, for the policy measured (needs --state-dir)")
      ->default_str(options.by)
      ->group(group);
  command.add_option("--data", options.data, "JSONL file: messages and, if wanted, gen_length")
      ->type_name("FILE")
      ->group(group);
  command.add_option("--out", options.out, "File for the result; configs/depth/MODEL.json")
      ->type_name("FILE")
      ->group(group);
  command.add_option("--limit", options.limit, "The first so many conversations only")
      ->group(group);
  command
      .add_option("--threshold", options.threshold,
                  "similarity: layers above it are taken over; 0 to 0.9999")
      ->default_str(options.threshold)
      ->group(group);
  command
      .add_option("--with-masks", options.with_masks,
                  "similarity: so many masks after every conversation, as in a served canvas")
      ->default_str(options.with_masks)
      ->group(group);
}

void add_info_options(CLI::App& command, InfoOptions& options) {
  command.add_option("--canvases", options.canvases, "Canvases at once, for the memory estimate")
      ->default_str(options.canvases);
  command.add_option("--canvas-tokens", options.canvas_tokens,
                     "Length of each; the model's longest if not given");
  command.add_flag("--json", options.json, "As JSON");
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

/// What a subcommand needs to know of flags beyond their values.
void note_given(const CLI::App& command, CommandLine& line) {
  const auto is_given = [&](const char* flag) { return command.get_option(flag)->count() > 0; };
  if (line.command == "generate") {
    for (const char* input : {"--prompt", "--chat", "--tokens"}) {
      line.generate.num_inputs += is_given(input);
    }
  }
  if (line.command == "eval") {
  }
}

}  // namespace

CommandLine parse_command_line(int argc, const char* const* argv) {
  CommandLine line;
  std::string model;
  CLI::App app("Serves masked-diffusion language models over the OpenAI HTTP API.", "bicached");
  app.set_version_flag("--version", std::string("bicached ") + version());
  app.require_subcommand(1);
  app.footer(
      "Settings also come from the environment (BICACHED_PORT) and from a JSON file "
      "(--config);\nthe order is flag, environment, file, default.");

  std::map<std::string, SettingFlags> flags;
  const auto add = [&](const char* name, const char* about,
                       const std::vector<std::string>& groups) -> CLI::App& {
    CLI::App& command = *app.add_subcommand(name, about);
    flags[name] = add_settings(command, groups, line.sources.config_file, model);
    return command;
  };
  add("serve", "The server", {});
  add_generate_options(add("generate", "One prompt, prints text or JSON", kDecodingGroups),
                       line.generate);
  CLI::App& eval =
      add("eval", "Accuracy and speed on questions, cache policies side by side", kDecodingGroups);
  add_eval_options(eval, flags["eval"], line.eval);
  CLI::App& profile = add(
      "profile", "How deep prefixes can be reused, from a file of conversations", kDecodingGroups);
  add_profile_options(profile, flags["profile"], line.profile);
  add_info_options(
      add("info", "What a model folder holds, and the memory it needs", kDecodingGroups),
      line.info);
  add("settings", "Prints the settings that would take effect, as JSON", {})
      .add_flag("--markdown", line.markdown, "The table of all settings instead");

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& done) {  // --help, --version
    app.exit(done);
    return line;
  } catch (const CLI::ParseError& error) {
    const auto used = app.get_subcommands();
    for (const CLI::App* command : used) check_extras(*command);
    throw Error(ErrorCode::kInvalidSettings,
                std::string(error.what()) + ". See bicached " +
                    (used.empty() ? "" : used.front()->get_name() + " ") + "--help");
  }
  const CLI::App& command = *app.get_subcommands().front();
  check_extras(command);
  line.command = command.get_name();
  line.sources.flags = given(flags[line.command], model);
  note_given(command, line);
  return line;
}

}  // namespace bicached
