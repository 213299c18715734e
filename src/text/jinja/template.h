#pragma once

#include <ctime>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "text/jinja/value.h"

namespace bicached::jinja {

/// What a rendering may cost. A template can loop and double strings as it likes; these stop it.
struct Limits {
  int64_t max_steps = 20'000'000;        // evaluated nodes, compared or printed values
  int64_t max_work_bytes = 512LL << 20;  // all text and lists made or looked through
  int64_t max_made_bytes = 128LL << 20;  // made, kept or not: what a rendering can take of memory
  int max_depth = 2000;                  // expressions and bodies inside each other, calls included
};

struct RenderOptions {
  Limits limits;
  std::optional<std::tm> now;  // strftime_now; absent: the local clock
};

struct Run;
/// What is parsed is a tree of functions, each of which does its part of a rendering.
using Statement = std::function<void(Run&)>;
using Body = std::vector<Statement>;

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
