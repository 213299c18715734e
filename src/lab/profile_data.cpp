#include "lab/profile_data.h"

#include "bicached/error.h"
#include "lab/eval_data.h"

namespace bicached {
namespace {

/// Without what follows the last user message: that is what a model would generate.
std::vector<ChatMessage> question_of(std::vector<ChatMessage> messages, const std::string& where) {
  while (!messages.empty() && messages.back().role != "user") messages.pop_back();
  if (!messages.empty()) return messages;
  throw Error(ErrorCode::kInvalidSettings,
              where + ": messages: there is none with \"role\": \"user\"", "messages");
}

}  // namespace

ProfileData read_profile_data(const std::string& path, int limit, const TextTools& text,
                              const ModelInfo& model, const ProfileLengths& lengths) {
  if (!text.chat_template) {
    throw Error(ErrorCode::kInvalidModel, "the model has no chat template, which profile needs");
  }
  std::vector<EvalQuestion> questions =
      select_questions(read_eval_data(path, EvalAnswers::kOptional), {{}, {}, limit}, path);
  ProfileData data;
  int index = 0;
  for (EvalQuestion& question : questions) {
    ProfileConversation one;
    one.index = index++;
    one.where = path + ":" + std::to_string(question.line);
    one.chat =
        encode_question(question_of(std::move(question.messages), one.where), text, one.where);
    one.gen_length = question.gen_length > 0 ? question.gen_length : lengths.default_gen_length;
    if (lengths.num_masks >= 0) one.gen_length = lengths.num_masks;
    if (one.chat.prefix_lengths.empty()) {
      ++data.num_without_prefix;
    } else if (one.num_tokens() + one.gen_length > model.max_length) {
      ++data.num_too_long;
    } else {
      data.conversations.push_back(std::move(one));
    }
  }
  if (!data.conversations.empty()) return data;
  throw Error(ErrorCode::kInvalidSettings,
              path + " has no conversation to profile: " + std::to_string(data.num_without_prefix) +
                  " have nothing before the last user message, " +
                  std::to_string(data.num_too_long) + " are longer than the model's " +
                  std::to_string(model.max_length) + " tokens",
              "--data");
}

}  // namespace bicached
