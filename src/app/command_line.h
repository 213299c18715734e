#pragma once

#include <cstdint>
#include <string>

#include "config/settings_io.h"

namespace bicached {

struct GenerateOptions {
  std::string prompt;  // raw text; "-" = standard input
  std::string chat;    // a user message; "-" = standard input
  std::string system;  // system message before it
  std::string tokens;  // raw prompt as ids: "1,2,3"
  std::string suffix;  // text after the masks
  int num_inputs = 0;  // how many of prompt, chat, tokens were given
  std::string seed = "0";
  std::string top_p;  // empty: the model's
  std::string top_k;  // empty: the model's
  bool ignore_eos = false;
  bool json = false;
};

/// Lists are names by commas.
struct EvalOptions {
  std::string data;  // JSONL file of questions
  std::string policies = "off,measured";
  std::string families;          // empty: all
  std::string without_families;  // but not these
  std::string gen_length;        // empty: the file's
  std::string limit;             // empty: all
  std::string concurrency = "8";
  std::string rounds = "1";
  std::string warmup = "8";
  std::string json;  // file for the results; empty: none
  bool by_family = false;
};

struct ProfileOptions {
  std::string by = "similarity";
  std::string data;  // JSONL file of conversations
  std::string threshold = "0.97";
  std::string out;    // file for the result; empty: by similarity, one named after the model
  std::string limit;  // empty: all
  std::string with_masks = "0";
};

struct InfoOptions {
  std::string canvases = "16";
  std::string canvas_tokens;  // empty: the model's longest
  bool json = false;
};

/// A parsed command line. Values of settings are still text: load_settings checks them together
/// with the environment and the file.
struct CommandLine {
  std::string command;  // empty: help or version was printed and nothing is to do
  SettingSources sources;
  GenerateOptions generate;
  EvalOptions eval;
  ProfileOptions profile;
  InfoOptions info;
  bool markdown = false;  // `settings`
};

/// Throws kInvalidSettings for what can't be parsed; an unknown flag names the nearest one.
CommandLine parse_command_line(int argc, const char* const* argv);

}  // namespace bicached
