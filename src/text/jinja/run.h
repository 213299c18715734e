#pragma once

#include <algorithm>

#include "text/jinja/library.h"

namespace bicached::jinja {

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
    for (const auto& [key, value] : globals.members()) assign(key.text(), value);
    scopes.push_back({0, {}});  // the template's own variables
  }

  Value find(const std::string& name) const {
    for (size_t at = scopes.size() - 1;; at = scopes[at].parent) {
      if (const Value* found = find_name(scopes[at].variables, name)) return *found;
      if (at == 0) return Value::undefined("'" + name + "' is undefined");
    }
  }

  void assign(std::string_view name, Value value) {
    set_name(scopes.back().variables, name, std::move(value));
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

  Value call(const Value& function, const Arguments& arguments) {
    if (function.is(kCallable)) return meter.made(function.function()(arguments));
    require_defined(function);
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
      assign(name, value ? *value : eval(otherwise));
    }
    if (num_used < given.size()) fail_runtime("macro '" + macro.name + "' takes no such argument");
    return Value::string(text_of(macro.body));
  }
};

}  // namespace bicached::jinja
