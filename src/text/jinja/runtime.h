#pragma once

#include <string>
#include <string_view>

#include "text/jinja/template.h"

namespace bicached::jinja {

/// What one rendering has used of its limits. One thread.
class Meter {
 public:
  explicit Meter(const Limits& limits) : limits_(limits) {}
  void step() {
    if (++steps_ > limits_.max_steps) fail(Failure::kLimit, "the template runs too long");
  }
  /// `num_bytes` of text are about to be made (or looked through).
  void charge(size_t num_bytes) {
    bytes_ += static_cast<int64_t>(num_bytes);
    if (bytes_ > limits_.max_text_bytes) fail(Failure::kLimit, "the template makes too much text");
  }
  const Limits& limits() const { return limits_; }

 private:
  Limits limits_;
  int64_t steps_ = 0;
  int64_t bytes_ = 0;
};

/// The parts of the language that need no scopes.
Value call_filter(const std::string& name, const Value& input, const Arguments& arguments,
                  Meter& meter);
bool call_test(const std::string& name, const Value& input, const Arguments& arguments);
/// A method of str, list or dict by Python's name; nullopt when the type has none of that name.
std::optional<Value> find_method(const Value& object, const std::string& name, Meter& meter);
Value get_attribute(const Value& object, const std::string& name, Meter& meter);
Value get_item(const Value& object, const Value& key, Meter& meter);
Value slice(const Value& object, const Value& start, const Value& stop, const Value& step);
Value binary(const std::string& op, const Value& a, const Value& b, Meter& meter);
/// namespace, dict, range, raise_exception, strftime_now.
Members builtin_globals(const RenderOptions& options, Meter& meter);

/// Python's string functions.
std::string upper(std::string_view s);
std::string lower(std::string_view s);
std::string capitalize(std::string_view s);
std::string strip(std::string_view s, const Value& characters, bool left, bool right);
std::vector<std::string> split_lines(std::string_view s);
std::string replace(std::string_view s, const std::string& from, const std::string& to,
                    int64_t count, Meter& meter);
std::string percent_format(const std::string& format, const Items& values);
size_t rough_bytes(const Value& v);

}  // namespace bicached::jinja
