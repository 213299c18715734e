#pragma once

#include <string>
#include <vector>

#include "app/model_folder.h"

namespace bicached {

/// A conversation and the answer that is right.
struct EvalQuestion {
  int line = 0;        // of the file, from 1
  std::string id;      // empty: the file gives none
  std::string family;  // kNoFamily: the file gives none
  int gen_length = 0;  // 0: the file gives none
  std::vector<ChatMessage> messages;
  std::string answer;
};

inline constexpr const char* kNoFamily = "(none)";

/// Whether every line must have an `answer`: what is only profiled needs none.
enum class EvalAnswers { kRequired, kOptional };

/// Reads a JSONL file: one object a line with `messages`, `answer` and, if wanted, `id`, `family`
/// and `gen_length`; other keys are not read, blank lines are skipped. Throws kInvalidSettings
/// naming file, line, field and what would be right.
std::vector<EvalQuestion> read_eval_data(const std::string& path,
                                         EvalAnswers answers = EvalAnswers::kRequired);

/// The prompt of these messages. Throws kInvalidSettings naming `where`, "FILE:12".
EncodedChat encode_question(const std::vector<ChatMessage>& messages, const TextTools& text,
                            const std::string& where);

/// The request that asks it, decoded as these resolved settings say.
GenerateRequest question_request(const EncodedChat& chat, const DecodeSettings& defaults,
                                 int gen_length, const std::string& id);

/// Which questions of a file are asked.
struct EvalSelection {
  std::vector<std::string> families;          // empty: all
  std::vector<std::string> without_families;  // but not these
  int limit = 0;                              // the first so many of what is left; 0: all
};

/// Keeps the file's order. Throws kInvalidSettings for a family that the file has not, naming those
/// it has, and when nothing is left.
std::vector<EvalQuestion> select_questions(std::vector<EvalQuestion> questions,
                                           const EvalSelection& selection, const std::string& path);

}  // namespace bicached
