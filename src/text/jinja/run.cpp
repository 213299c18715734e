// What a rendering keeps and does; the tree of functions is made in parser.cpp.
#include "text/jinja/run.h"

#include <algorithm>

namespace bicached::jinja {

size_t Meter::own_bytes(const Value& v) {
  if (v.is(Kind::kString)) return v.text().size() + sizeof(Value) + sizeof(std::string);
  if (v.is(Kind::kList)) return v.items().size() * sizeof(Value);
  return v.is(Kind::kDict) ? v.members().size() * 2 * sizeof(Value) : 0;
}

void Meter::add(size_t num_bytes, int64_t& bytes, int64_t most, const char* verb) {
  bytes += static_cast<int64_t>(num_bytes);
  if (bytes <= most) return;
  fail(Failure::kLimit, "the template " + std::string(verb) + " more than " +
                            std::to_string(most >> 20) + " MiB of text and lists");
}

Run::Run(const Value& globals, const RenderOptions& options) : meter(options), scopes(1) {
  for (const auto& [key, value] : builtin_globals(meter)) assign(key.text(), value);
  for (const auto& [key, value] : globals.members()) assign(key.text(), value);
  scopes.emplace_back();  // the template's own variables
}

Value Run::find(const std::string& name) const {
  for (auto scope = scopes.rbegin(); scope != scopes.rend(); ++scope) {
    for (const auto& [key, value] : *scope) {
      if (key == name) return value;
    }
  }
  return Value::undefined("'" + name + "' is undefined");
}

void Run::assign(const std::string& name, Value value) {
  for (auto& [key, old] : scopes.back()) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  scopes.back().emplace_back(name, std::move(value));
}

void Run::print(const std::string& text) {
  meter.make(text.size());
  out += text;
}

Flow Run::run(const Body& body) {
  const DepthGuard guard(*this);
  for (const Stmt& statement : body) {
    meter.step();
    if (const Flow flow = statement(*this); flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

std::string Run::text_of(const Body& body) {
  const ScopeGuard scope(*this);
  std::string saved = std::exchange(out, {});
  if (run(body) != Flow::kNext)
    fail_unsupported("leaving a loop from inside a set or filter block");
  return std::exchange(out, std::move(saved));
}

Value Run::call(const Macro& macro, const Arguments& arguments, size_t num_scopes) {
  struct Hidden {
    Run& run;
    size_t visible;
    std::vector<Scope> scopes;
    ~Hidden() {
      run.scopes.resize(visible);
      std::ranges::move(scopes, std::back_inserter(run.scopes));
    }
  } hidden{*this, std::min(num_scopes, scopes.size()), {}};
  std::ranges::move(scopes.begin() + static_cast<std::ptrdiff_t>(hidden.visible), scopes.end(),
                    std::back_inserter(hidden.scopes));
  scopes.resize(hidden.visible);
  scopes.emplace_back();
  bind(macro, arguments);
  std::string saved = std::exchange(out, {});
  run(macro.body);
  return Value::string(std::exchange(out, std::move(saved)));
}

void Run::bind(const Macro& macro, const Arguments& arguments) {
  const std::string what = "macro '" + macro.name + "'";
  if (arguments.positional.size() > macro.parameters.size())
    fail_runtime(what + " takes not more than " + std::to_string(macro.parameters.size()) +
                 " argument(s)");
  auto named = arguments.named;
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const std::string& name = macro.parameters[i].first;
    const Expr& otherwise = macro.parameters[i].second;
    const auto given = std::ranges::find(named, name, &std::pair<std::string, Value>::first);
    if (i < arguments.positional.size()) {
      assign(name, arguments.positional[i]);
    } else if (given != named.end()) {
      assign(name, given->second);
      named.erase(given);
    } else {
      assign(name, otherwise.is_given()
                       ? otherwise(*this)
                       : Value::undefined("parameter '" + name + "' was not provided"));
    }
  }
  if (!named.empty()) fail_runtime(what + " takes no keyword argument '" + named[0].first + "'");
}

}  // namespace bicached::jinja
