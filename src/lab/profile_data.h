#pragma once

#include <string>
#include <vector>

#include "app/model_folder.h"

namespace bicached {

/// A conversation up to its last user message, as the server would encode it.
struct ProfileConversation {
  int index = 0;      // in the file, from 0
  std::string where;  // "FILE:12", for messages
  EncodedChat chat;   // never without a prefix
  int gen_length = 0;

  /// Everything before the last user message.
  int prefix_len() const { return chat.prefix_lengths.back(); }
  int num_tokens() const { return static_cast<int>(chat.ids.size()); }
};

/// The conversations that can be profiled, and how many can't be.
struct ProfileData {
  std::vector<ProfileConversation> conversations;
  int num_without_prefix = 0;  // they begin with the last user message
  int num_too_long = 0;        // over the model's longest canvas
};

/// What is generated, or stands in for it, after a conversation.
struct ProfileLengths {
  int default_gen_length = 0;  // of lines without gen_length
  int num_masks = -1;          // instead of both, when not negative
};

/// Reads a JSONL file in the form of models/demo/eval/eval.jsonl: `messages` and, if wanted,
/// `gen_length`. Only the first `limit` lines unless that is 0. Throws kInvalidSettings naming
/// file, line and field, also when nothing can be profiled.
ProfileData read_profile_data(const std::string& path, int limit, const TextTools& text,
                              const ModelInfo& model, const ProfileLengths& lengths);

}  // namespace bicached
