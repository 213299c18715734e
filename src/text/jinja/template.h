#pragma once

#include <ctime>
#include <optional>
#include <string>
#include <string_view>

#include "text/jinja/syntax.h"
#include "text/jinja/value.h"

namespace bicached::jinja {

/// What a rendering may cost. A template can loop and double strings as it likes; these stop it.
struct Limits {
  int64_t max_steps = 20'000'000;        // evaluated nodes, compared or printed values
  int64_t max_text_bytes = 512LL << 20;  // all text and lists made or looked through, kept or not
  int max_call_depth = 40;               // macros
};

struct RenderOptions {
  Limits limits;
  std::optional<std::tm> now;  // strftime_now; absent: the local clock
};

/// A Jinja template, as Hugging Face's apply_chat_template runs it: immutable sandbox, trim_blocks,
/// lstrip_blocks, loop controls. What it renders is what Jinja renders. It has what templates of
/// published chat models use (FEATURES.md) and refuses the rest by name with TemplateError: when
/// parsed where that can be seen, else when it comes to it.
///
/// Why not a library: the one that fits (minja) gives other text than Jinja without a word in many
/// places, and a template or a message can make it crash or fill memory.
///
/// Immutable; any thread.
class Template {
 public:
  static constexpr size_t kMaxSourceBytes = 64 << 10;

  explicit Template(std::string_view source);

  /// `globals`: a dict of the template's variables.
  std::string render(const Value& globals, const RenderOptions& options = {}) const;

 private:
  Body body_;
};

}  // namespace bicached::jinja
