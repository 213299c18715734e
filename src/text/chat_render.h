#pragma once

#include <string>
#include <vector>

#include "bicached/chat_template.h"
#include "text/jinja/template.h"

namespace bicached {

/// What apply_chat_template does around the template, on any JSON messages.
struct ChatInput {
  jinja::Value messages;  // a list of dicts
  bool add_generation_prompt = false;
  jinja::Value bos_token, eos_token;  // undefined: the template has none
  jinja::Value tools = jinja::Value::none();
  jinja::Members extra;  // further globals
};

/// Throws jinja::TemplateError.
std::string render_chat(const jinja::Template& source, const ChatInput& input,
                        const jinja::RenderOptions& options = {});

/// The same with the texts of `disarmed` in message strings kept apart: they come out as untrusted
/// pieces.
std::vector<TextPiece> render_chat_pieces(const jinja::Template& source, ChatInput input,
                                          const std::vector<std::string>& disarmed,
                                          const jinja::RenderOptions& options = {});

/// Which added tokens' texts are kept apart for this template: the special ones, and those that it
/// writes itself.
std::vector<std::string> texts_to_disarm(const std::vector<AddedTokenText>& tokens,
                                         const std::string& template_source);

}  // namespace bicached
