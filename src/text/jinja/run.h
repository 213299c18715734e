#pragma once

#include <algorithm>
#include <array>

#include "text/jinja/template.h"

namespace bicached::jinja {

/// What one rendering has used of its limits.
struct Meter {
  const RenderOptions& options;
  int64_t num_steps = 0, work_bytes = 0, made_bytes = 0;

  void step() {
    if (++num_steps > options.limits.max_steps) fail(Failure::kLimit, "the template runs too long");
  }
  /// So many bytes are about to be looked through, or all of a value's text or list.
  void charge(size_t num_bytes) {
    add(num_bytes, work_bytes, options.limits.max_work_bytes, "handles");
  }
  void charge(const Value& v) { charge(own_bytes(v)); }
  /// So many bytes are made.
  void make(size_t num_bytes) {
    charge(num_bytes);
    add(num_bytes, made_bytes, options.limits.max_made_bytes, "makes");
  }
  Value made(Value v) {
    make(own_bytes(v));
    return v;
  }

 private:
  static size_t own_bytes(const Value& v) {
    if (v.is(kString)) return v.text().size() + sizeof(Value) + sizeof(std::string);
    if (v.has_items()) return v.items().size() * sizeof(Value);
    return v.is(kDict) ? v.members().size() * 2 * sizeof(Value) : 0;
  }
  static void add(size_t num_bytes, int64_t& bytes, int64_t most, std::string_view verb) {
    bytes += static_cast<int64_t>(num_bytes);
    if (bytes > most)
      fail(Failure::kLimit, "the template " + std::string(verb) + " more than " +
                                std::to_string(most >> 20) + " MiB of text and lists");
  }
};

// --- filters, tests, methods and global functions (builtins.cpp): rows of a table

/// What a row is. The rows stand in this order.
enum Use { kFilter, kTest, kOfText, kOfDict, kOfList, kGlobal };

struct Call {
  const Value& self;  // of a filter, test or method: its input
  const Arguments& given;
  Meter& meter;
  std::array<Value, 4> args;  // `given` in the order of the row's parameters; undefined when absent
  const Value& operator[](size_t i) const { return args[i]; }
};

constexpr size_t kAny = SIZE_MAX;
struct Builtin {
  Use use;
  std::string_view name;
  Value (*run)(const Call&);
  size_t required = 0, most = 0;                    // arguments; kAny: not bound to `args`
  std::array<std::string_view, 4> parameters = {};  // names that may be given; empty: by place only
};

/// Null when there is none of that name: Jinja may have it.
const Builtin* find_builtin(Use use, std::string_view name);
/// Null when the object's type has no method of that name in Python. Throws kUnsupported when
/// Python has it and this engine has not.
const Builtin* find_method(const Value& object, std::string_view name);
Value call(const Builtin& builtin, const Value& self, const Arguments& given, Meter& meter);
/// namespace, dict, range, raise_exception, strftime_now.
Members global_functions(Meter& meter);

// --- operators (operators.cpp)

bool equal(const Value& a, const Value& b, Meter& meter);
/// a < b; throws for kinds that have no order.
bool less(const Value& a, const Value& b, Meter& meter);
/// The value of a dict's key that equals `key`, or null.
const Value* find_member(const Members& members, const Value& key, Meter& meter);
/// Every operator between two values but `and` and `or`.
Value binary(std::string_view op, const Value& a, const Value& b, Meter& meter);
Value get_attribute(const Value& object, const std::string& name, Meter& meter);
Value get_item(const Value& object, const Value& key, Meter& meter);
/// `parts`: start, stop and step, each may be none.
Value slice(const Value& object, const std::array<Value, 3>& parts, Meter& meter);
/// What iterating gives: items, keys, characters. Throws when it can't be iterated.
Items iterate(const Value& v, Meter& meter);

// --- text (text.cpp)

/// How a value is written: as Python's repr does, or as its json.dumps.
struct Style {
  bool json = true;
  bool ensure_ascii = false;
  int indent = -1;  // -1: one line
  std::string item_separator = ", ", key_separator = ": ";
};
std::string written(const Value& v, const Style& style, Meter& meter);
/// Python's str().
std::string to_text(const Value& v, Meter& meter);

/// Titles: Jinja's filter begins words behind white space and brackets, Python's behind no letter.
enum class Case { kUpper, kLower, kCapitalized, kTitleOfFilter, kTitleOfMethod };
std::string in_case(Case which, std::string_view s);

enum class Side { kLeft, kRight, kBoth };
/// Without the characters at its ends; not given: without white space.
std::string_view strip(std::string_view s, const Value& characters, Side side);

// --- one rendering

/// A parsed expression. Empty: it was left out.
using Expression = std::function<Value(Run&)>;
/// What an expression does with the value so far: an attribute, an operator, a filter.
using Step = std::function<Value(Run&, const Value&)>;
/// What is called with, or the parameters of a macro and their defaults. Without a name: by place.
using NamedExpressions = std::vector<std::pair<std::string, Expression>>;

struct Macro {
  std::string name;
  NamedExpressions parameters;
  Body body;
};

/// One level more of what runs or is parsed inside each other: keeps recursion to the stack.
struct Level {
  Level(int& d, int most) : depth(d) {
    if (depth++ >= most) fail(Failure::kLimit, "the template is nested too deep");
  }
  ~Level() { --depth; }
  int& depth;
};

struct Scope {
  size_t parent;  // where to look next: its place among the scopes
  Members variables;
};

enum class Flow { kNext, kBreak, kContinue };

/// One rendering: its variables, what it has written, and what it has used. One thread.
struct Run {
  /// Variables that end with a block.
  struct ScopeGuard {
    explicit ScopeGuard(Run& r) : ScopeGuard(r, r.scopes.size() - 1) {}
    ScopeGuard(Run& r, size_t parent) : run(r) { run.scopes.push_back({parent, {}}); }
    ~ScopeGuard() { run.scopes.pop_back(); }
    Run& run;
  };

  Meter meter;
  std::vector<Scope> scopes;
  std::string out;
  Flow flow = Flow::kNext;  // else what runs now ends, up to the loop around it
  int depth = 0;            // of what runs now

  Run(const Value& globals, const RenderOptions& options) : meter{options} {
    scopes.push_back({0, global_functions(meter)});
    for (const auto& [key, value] : globals.members()) assign(key, value);
    scopes.push_back({0, {}});  // the template's own variables
  }

  Value find(const std::string& name) {
    for (size_t at = scopes.size() - 1;; at = scopes[at].parent) {
      meter.charge(scopes[at].variables.size());
      if (const Value* found = find_name(scopes[at].variables, name)) return *found;
      if (at == 0) return Value::undefined("'" + name + "' is undefined");
    }
  }

  void assign(const Value& name, Value value) {
    set_name(scopes.back().variables, name, std::move(value));
  }

  /// Several names take a value apart.
  void assign(const Items& names, const Value& value) {
    if (names.size() == 1) return assign(names[0], value);
    const Items items = iterate(value, meter);
    if (items.size() != names.size()) fail_runtime("there are not as many names as values");
    for (size_t i = 0; i < items.size(); ++i) assign(names[i], items[i]);
  }

  void print(const Value& value) {
    const std::string text = to_text(value, meter);
    meter.make(text.size());
    out += text;
  }

  Value eval(const Expression& expression) {
    meter.step();
    const Level level(depth, meter.options.limits.max_depth);
    return expression ? expression(*this) : Value::none();
  }

  Value apply(const std::vector<Step>& steps, Value value) {
    for (const Step& step : steps) {
      meter.step();
      value = step(*this, value);
    }
    return value;
  }

  Arguments arguments(const NamedExpressions& expressions) {
    Arguments given;
    for (const auto& [name, expression] : expressions)
      given.emplace_back(name.empty() ? Value() : Value::string(name), eval(expression));
    return given;
  }

  void run(const Body& body) {
    const Level level(depth, meter.options.limits.max_depth);
    for (const Statement& statement : body) {
      meter.step();
      statement(*this);
      if (flow != Flow::kNext) return;
    }
  }

  void loop(Items items, const Items& names, const Body& body) {
    const Value name = Value::string("loop");
    const auto loop = std::make_shared<Loop>(std::move(items));  // a template may keep it for later
    for (size_t i = 0; i < loop->items.size(); ++i) {
      loop->index = i;
      meter.step();
      const ScopeGuard guard(*this);
      assign(name, Value::loop(loop));
      assign(names, loop->items[i]);
      run(body);
      if (std::exchange(flow, Flow::kNext) == Flow::kBreak) break;
    }
  }

  Value call(const Value& function, const Arguments& arguments) {
    if (function.is(kCallable)) return meter.made(function.function()(arguments));
    function.require_defined();
    fail_runtime("'" + type_name(function) + "' object is not callable");
  }

  /// In a scope of its own.
  std::string text_of(const Body& body) {
    const ScopeGuard guard(*this);
    std::string saved = std::exchange(out, {});
    run(body);
    if (flow != Flow::kNext) refuse("leaving a loop from inside a set or filter block");
    return std::exchange(out, std::move(saved));
  }

  /// A macro sees the scope it was defined in, not that of its caller.
  Value call(const Macro& macro, const Arguments& given, size_t home) {
    const ScopeGuard guard(*this, std::min(home, scopes.size() - 1));
    size_t num_used = 0;
    for (size_t i = 0; i < macro.parameters.size(); ++i) {
      const auto& [name, otherwise] = macro.parameters[i];
      const bool by_place = i < given.size() && given[i].first.is(kUndefined);
      const Value* value = by_place ? &given[i].second : find_name(given, name);
      num_used += value != nullptr;
      assign(Value::string(name), value ? *value : eval(otherwise));
    }
    if (num_used < given.size()) fail_runtime("macro '" + macro.name + "' takes no such argument");
    return Value::string(text_of(macro.body));
  }
};

}  // namespace bicached::jinja
