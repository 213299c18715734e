#pragma once

#include <array>
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
  /// `num_bytes` are about to be made or looked through.
  void charge(size_t num_bytes) {
    bytes_ += static_cast<int64_t>(num_bytes);
    if (bytes_ > limits_.max_text_bytes) fail(Failure::kLimit, "the template makes too much text");
  }
  void charge(const Value& v);  // all of its own text, or list of items
  const Limits& limits() const { return limits_; }

 private:
  Limits limits_;
  int64_t steps_ = 0;
  int64_t bytes_ = 0;
};

// --- builtins: filters, tests and methods are rows of tables (filters.cpp, tests.cpp, methods.cpp)

struct Call {
  const Value& self;  // of a filter or test: its input
  const Arguments& given;
  Meter& meter;
  std::array<Value, 4> args;  // `given` in the order of the row's parameters; undefined when absent
  const Value& operator[](size_t i) const { return args[i]; }
};

struct Builtin {
  std::string_view name;
  Value (*run)(const Call&);
  int required = 0, most = 0;                       // arguments; most < 0: any, not bound to `args`
  std::array<std::string_view, 4> parameters = {};  // names that may be given; empty: by place only
};

Value run(const Builtin& builtin, const Value& self, const Arguments& given, Meter& meter);
/// Null when there is none of that name: Jinja may have it.
const Builtin* find_filter(std::string_view name);
const Builtin* find_test(std::string_view name);
/// Null when the object's type has no method of that name in Python. Throws kUnsupported when
/// Python has it and this engine has not.
const Builtin* find_method(const Value& object, std::string_view name);
/// namespace, dict, range, raise_exception, strftime_now.
Members builtin_globals(const RenderOptions& options, Meter& meter);

// --- operators (operators.cpp)

bool equal(const Value& a, const Value& b, Meter& meter);
/// a < b; throws for kinds that have no order.
bool less(const Value& a, const Value& b, Meter& meter);
bool contains(const Value& container, const Value& item, Meter& meter);
/// The value of a dict's key that equals `key`, or null.
const Value* find_member(const Members& members, const Value& key, Meter& meter);
Value binary(const std::string& op, const Value& a, const Value& b, Meter& meter);
Value get_attribute(const Value& object, const std::string& name);
Value get_item(const Value& object, const Value& key, Meter& meter);
Value slice(const Value& object, const Value& start, const Value& stop, const Value& step,
            Meter& meter);
/// What iterating gives: items, keys, characters. Throws when it can't be iterated.
Items iterate(const Value& v, Meter& meter);

// --- text (printing.cpp, strings.cpp)

/// Python's str().
std::string to_text(const Value& v, Meter& meter);

struct JsonStyle {
  bool ensure_ascii = false;
  int indent = -1;  // -1: one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
/// Python's json.dumps.
std::string to_json(const Value& v, const JsonStyle& style, Meter& meter);

bool is_space(char32_t c);  // Python's str.isspace
std::string upper(std::string_view s);
std::string lower(std::string_view s);
std::string capitalize(std::string_view s);
/// Every word with a capital (in title case, or in upper case), else lower case: a word begins
/// behind a character for which `ends_word` holds.
std::string title(std::string_view s, bool (*ends_word)(char32_t), bool as_title);
bool has_case(char32_t c);
std::string strip(std::string_view s, const Value& characters, bool left, bool right);
std::string replace(std::string_view s, const std::string& from, const std::string& to,
                    int64_t count, Meter& meter);

}  // namespace bicached::jinja
