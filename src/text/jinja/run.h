#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "text/jinja/template.h"

namespace bicached::jinja {

/// What one rendering has used of its limits.
class Meter {
 public:
  explicit Meter(const RenderOptions& options) : options_(options) {}
  void step() {
    if (++steps_ > limits().max_steps) fail(Failure::kLimit, "the template runs too long");
  }
  /// So many bytes are about to be looked through, or all of a value's text or list.
  void charge(size_t num_bytes) { add(num_bytes, work_bytes_, limits().max_work_bytes, "handles"); }
  void charge(const Value& v) { charge(own_bytes(v)); }
  /// So many bytes are made.
  void make(size_t num_bytes) {
    charge(num_bytes);
    add(num_bytes, made_bytes_, limits().max_made_bytes, "makes");
  }
  Value made(Value v) {
    make(own_bytes(v));
    return v;
  }
  const RenderOptions& options() const { return options_; }
  const Limits& limits() const { return options_.limits; }

 private:
  static size_t own_bytes(const Value& v);
  static void add(size_t num_bytes, int64_t& bytes, int64_t most, const char* verb);

  const RenderOptions& options_;
  int64_t steps_ = 0, work_bytes_ = 0, made_bytes_ = 0;
};

struct Macro;
using Scope = std::vector<std::pair<std::string, Value>>;

/// One rendering: its variables, what it has written, and what it has used. One thread.
struct Run {
  Run(const Value& globals, const RenderOptions& options);

  Value find(const std::string& name) const;
  void assign(const std::string& name, Value value);
  void print(const std::string& text);
  Flow run(const Body& body);
  std::string text_of(const Body& body);  // in a scope of its own
  /// A macro sees the scopes it was defined in, not those of its caller.
  Value call(const Macro& macro, const Arguments& arguments, size_t num_scopes);
  void bind(const Macro& macro, const Arguments& arguments);

  Meter meter;
  std::vector<Scope> scopes;
  std::string out;
  Value block_text;  // what the filters of a filter block get
  int depth = 0;     // of what runs now
};

/// Keeps to the stack: evaluation recurses into expressions, bodies and macros.
struct DepthGuard {
  explicit DepthGuard(Run& r) : run(r) {
    if (run.depth == run.meter.limits().max_depth)
      fail(Failure::kLimit, "the template goes too deep");
    ++run.depth;
  }
  ~DepthGuard() { --run.depth; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;
  Run& run;
};

struct ScopeGuard {
  explicit ScopeGuard(Run& r) : run(r) { run.scopes.emplace_back(); }
  ~ScopeGuard() { run.scopes.pop_back(); }
  Run& run;
};

/// A parsed expression. Copies share the tree.
struct Expr {
  std::shared_ptr<const std::function<Value(Run&)>> eval;  // null: it was left out
  int depth = 0;  // of the tree, which evaluation recurses into

  bool is_given() const { return eval != nullptr; }
  Value operator()(Run& run) const {
    run.meter.step();
    const DepthGuard depth_guard(run);
    return eval ? (*eval)(run) : Value::none();
  }
};
using Exprs = std::vector<Expr>;

struct Macro {
  std::string name;
  std::vector<std::pair<std::string, Expr>> parameters;  // and their defaults
  Body body;
};

// --- filters (filters.cpp), tests, methods and global functions (builtins.cpp): rows of tables

struct Call {
  const Value& self;  // of a filter, test or method: its input
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

template <class Table>
const Builtin* find_row(const Table& table, std::string_view name) {
  const auto* row = std::ranges::find(table, name, &Builtin::name);
  return row == std::end(table) ? nullptr : row;
}

Value call(const Builtin& builtin, const Value& self, const Arguments& given, Meter& meter);
/// Null when there is none of that name: Jinja may have it.
const Builtin* find_filter(std::string_view name);
const Builtin* find_test(std::string_view name);
/// Null when the object's type has no method of that name in Python. Throws kUnsupported when
/// Python has it and this engine has not.
const Builtin* find_method(const Value& object, std::string_view name);
/// namespace, dict, range, raise_exception, strftime_now.
Members builtin_globals(Meter& meter);

/// What filters and methods share.
std::string text_input(const Call& c);
Value replace_text(const Call& c);
template <std::string (*kChange)(std::string_view)>
Value change_text(const Call& c) {
  return Value::string(kChange(text_input(c)));
}

// --- operators (operators.cpp)

bool equal(const Value& a, const Value& b, Meter& meter);
/// a < b; throws for kinds that have no order.
bool less(const Value& a, const Value& b, Meter& meter);
bool contains(const Value& container, const Value& item, Meter& meter);
/// The value of a dict's key that equals `key`, or null.
const Value* find_member(const Members& members, const Value& key, Meter& meter);
/// Every operator between two values but `and` and `or`.
Value binary(const std::string& op, const Value& a, const Value& b, Meter& meter);
Value get_attribute(const Value& object, const std::string& name);
Value get_item(const Value& object, const Value& key, Meter& meter);
/// `parts`: start, stop and step, each may be none.
Value slice(const Value& object, const std::array<Value, 3>& parts, Meter& meter);
/// What iterating gives: items, keys, characters. Throws when it can't be iterated.
Items iterate(const Value& v, Meter& meter);
Value dict_of(const Items& keys_and_values, Meter& meter);
Items pairs_of(const Members& members);

// --- text (text.cpp)

/// Python's str().
std::string to_text(const Value& v, Meter& meter);

struct JsonStyle {
  bool ensure_ascii = false;
  int indent = -1;  // -1: one line
  std::string item_separator = ", ", key_separator = ": ";
};
/// Python's json.dumps.
std::string to_json(const Value& v, const JsonStyle& style, Meter& meter);

bool is_space(char32_t c);  // Python's str.isspace
std::string upper(std::string_view s);
std::string lower(std::string_view s);
std::string capitalize(std::string_view s);
std::string title_of_words(std::string_view s);    // Jinja's filter: by white space and brackets
std::string title_of_letters(std::string_view s);  // Python's method: by what is no letter
std::string strip(std::string_view s, const Value& characters, bool left, bool right);
template <bool kLeft, bool kRight>
Value strip_text(const Call& c) {
  return Value::string(strip(text_input(c), c[0], kLeft, kRight));
}

}  // namespace bicached::jinja
