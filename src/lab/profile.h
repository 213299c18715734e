#pragma once

#include <string>

#include "bicached/settings.h"
#include "lab/profile_data.h"

namespace bicached {

/// The flags of `bicached-lab profile`, checked.
struct ProfilePlan {
  std::string data;
  std::string out;          // file for the result
  double threshold = 0.97;  // of similarity
  int num_masks = 0;        // appended to every conversation
};

/// Measures similarity (DESIGN 6, policy `table`) and writes a depth table to `plan.out`.
void profile_similarity(const Settings& settings, const ProfilePlan& plan, const ProfileData& data);

/// Decodes all conversations with every one probed (policy `measured`), prints what the probes
/// found and, if `plan.out` is not empty, writes it; the statistics go to `state_dir`. Returns how
/// many requests failed; they were told on standard error.
int profile_decisions(const Settings& settings, const ProfilePlan& plan, const ProfileData& data,
                      const DecodeSettings& defaults);

/// "eval.jsonl, 1990 conversations (7 without a prefix and 3 too long were left out)".
std::string describe_source(const ProfilePlan& plan, const ProfileData& data);

/// Replaces `path` by `text` at once or not at all. Throws kInvalidSettings naming --out.
void write_result(const std::string& path, const std::string& text);

}  // namespace bicached
