// Runs the tree.
#include <algorithm>

#include "text/jinja/runtime.h"

namespace bicached::jinja {
namespace {

using Scope = std::vector<std::pair<std::string, Value>>;
enum class Flow { kNext, kBreak, kContinue };

/// One rendering: scopes and output. The tree is never changed.
class Interpreter {
 public:
  Interpreter(const Value& globals, const RenderOptions& options) : meter_(options.limits) {
    scopes_.resize(1);
    for (const auto& [key, value] : builtin_globals(options, meter_)) assign(key.text(), value);
    for (const auto& [key, value] : globals.members()) assign(key.text(), value);
    scopes_.emplace_back();  // the template's own variables
  }

  std::string render(const Body& body) {
    run(body);
    return std::move(out_);
  }

 private:
  struct ScopeGuard {
    explicit ScopeGuard(Interpreter& i) : interpreter(i) { interpreter.scopes_.emplace_back(); }
    ~ScopeGuard() { interpreter.scopes_.pop_back(); }
    Interpreter& interpreter;
  };

  Value find(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      for (const auto& [key, value] : *scope) {
        if (key == name) return value;
      }
    }
    return Value::undefined("'" + name + "' is undefined");
  }

  void assign(const std::string& name, Value value) {
    for (auto& [key, old] : scopes_.back()) {
      if (key == name) {
        old = std::move(value);
        return;
      }
    }
    scopes_.back().emplace_back(name, std::move(value));
  }

  void assign_target(const Expr& target, const Value& value) {
    if (target.kind == ExprKind::kName) {
      assign(target.name, value);
    } else if (target.kind == ExprKind::kAttribute) {
      const Value object = find(target.children[0]->name);
      if (!object.is(Kind::kNamespace))
        fail_runtime("cannot assign attribute on non-namespace object");
      object.set_member(target.name, value);
    } else {
      const Items items = iterate(value, meter_);
      if (items.size() != target.children.size()) {
        fail_runtime("can't unpack " + std::to_string(items.size()) + " values into " +
                     std::to_string(target.children.size()));
      }
      for (size_t i = 0; i < items.size(); ++i) assign_target(*target.children[i], items[i]);
    }
  }

  void print(const std::string& text) {
    meter_.charge(text.size());
    out_ += text;
  }

  // --- statements

  Flow run(const Body& body) {
    for (const Stmt& statement : body) {
      meter_.step();
      const Flow flow = run(statement);
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  Flow run(const Stmt& s) {
    switch (s.kind) {
      case StmtKind::kText: print(s.text); break;
      case StmtKind::kPrint: print(to_text(eval(*s.value), meter_)); break;
      case StmtKind::kIf: return run(truthy(eval(*s.value)) ? s.body : s.otherwise);
      case StmtKind::kFor: return run_for(s);
      case StmtKind::kSet: assign_target(*s.target, eval(*s.value)); break;
      case StmtKind::kSetBlock: assign_target(*s.target, text_of_block(s.body)); break;
      case StmtKind::kFilterBlock: {
        block_text_ = text_of_block(s.body);
        print(to_text(eval(*s.value), meter_));
        break;
      }
      case StmtKind::kMacro: assign(s.text, macro(s)); break;
      case StmtKind::kScope: {
        const ScopeGuard scope(*this);
        return run(s.body);
      }
      case StmtKind::kBreak: return Flow::kBreak;
      case StmtKind::kContinue: return Flow::kContinue;
    }
    return Flow::kNext;
  }

  Value text_of_block(const Body& body) {
    const ScopeGuard scope(*this);
    std::string saved = std::exchange(out_, {});
    const Flow flow = run(body);
    if (flow != Flow::kNext) fail_unsupported("leaving a loop from inside a set or filter block");
    return Value::string(std::exchange(out_, std::move(saved)));
  }

  Flow run_for(const Stmt& s) {
    Items items = iterate(eval(*s.value), meter_);
    if (s.condition) {
      Items kept;
      for (Value& item : items) {
        const ScopeGuard scope(*this);
        assign_target(*s.target, item);
        if (truthy(eval(*s.condition))) kept.push_back(std::move(item));
      }
      items = std::move(kept);
    }
    if (items.empty()) {
      const ScopeGuard scope(*this);
      return run(s.otherwise);
    }
    const auto state = std::make_shared<LoopState>(LoopState{std::move(items), 0});
    for (; state->index < state->items.size(); ++state->index) {
      meter_.step();
      const ScopeGuard scope(*this);
      assign("loop", Value::loop(state));
      assign_target(*s.target, state->items[state->index]);
      if (run(s.body) == Flow::kBreak) break;
    }
    return Flow::kNext;
  }

  /// A macro sees the scopes it was defined in, not those of its caller.
  Value macro(const Stmt& s) {
    return Value::callable([this, &s, num_scopes = scopes_.size()](const Arguments& arguments) {
      if (calls_ == meter_.limits().max_call_depth)
        fail(Failure::kLimit, "the template calls itself too deep");
      const size_t visible = std::min(num_scopes, scopes_.size());
      const auto first = scopes_.begin() + static_cast<std::ptrdiff_t>(visible);
      struct Hidden {
        Interpreter& self;
        std::vector<Scope> scopes;
        size_t visible;
        ~Hidden() {
          --self.calls_;
          self.scopes_.resize(visible);
          for (Scope& scope : scopes) self.scopes_.push_back(std::move(scope));
        }
      } hidden{
          *this, {std::make_move_iterator(first), std::make_move_iterator(scopes_.end())}, visible};
      ++calls_;
      scopes_.resize(visible);
      scopes_.emplace_back();
      bind(s, arguments);
      std::string saved = std::exchange(out_, {});
      run(s.body);
      return Value::string(std::exchange(out_, std::move(saved)));
    });
  }

  void bind(const Stmt& macro, const Arguments& arguments) {
    const size_t num_given = arguments.positional.size();
    if (num_given > macro.parameters.size()) {
      fail_runtime("macro '" + macro.text + "' takes not more than " +
                   std::to_string(macro.parameters.size()) + " argument(s)");
    }
    auto named = arguments.named;
    for (size_t i = 0; i < macro.parameters.size(); ++i) {
      const auto& [name, otherwise] = macro.parameters[i];
      const auto given =
          std::find_if(named.begin(), named.end(),
                       [&, &wanted = name](const auto& n) { return n.first == wanted; });
      if (i < num_given) {
        assign(name, arguments.positional[i]);
      } else if (given != named.end()) {
        assign(name, given->second);
        named.erase(given);
      } else {
        assign(name, otherwise ? eval(*otherwise)
                               : Value::undefined("parameter '" + name + "' was not provided"));
      }
    }
    if (!named.empty())
      fail_runtime("macro '" + macro.text + "' takes no keyword argument '" + named[0].first + "'");
  }

  // --- expressions

  Arguments arguments_of(const Expr& e) {
    Arguments arguments;
    for (size_t i = 1; i < e.children.size(); ++i)
      arguments.positional.push_back(eval(*e.children[i]));
    for (const auto& [name, value] : e.named) arguments.named.emplace_back(name, eval(*value));
    return arguments;
  }

  Value call_builtin(const Builtin* builtin, const Expr& e, const Value& self) {
    if (!builtin) fail_unsupported("the filter or test '" + e.name + "'");
    return jinja::run(*builtin, self, arguments_of(e), meter_);
  }

  Value call(const Expr& e) {
    const Expr& callee = *e.children[0];
    Value function;
    if (callee.kind == ExprKind::kAttribute) {
      const Value object = eval(*callee.children[0]);
      if (const Builtin* method = find_method(object, callee.name))
        return jinja::run(*method, object, arguments_of(e), meter_);
      function = get_attribute(object, callee.name);
    } else {
      function = eval(callee);
    }
    const Arguments arguments = arguments_of(e);
    if (function.is(Kind::kCallable)) return function.function()(arguments);
    if (function.is(Kind::kUndefined)) fail_runtime(function.undefined_message());
    fail_runtime("'" + type_name(function) + "' object is not callable");
  }

  bool holds(const std::string& op, const Value& a, const Value& b) {
    if (op == "==") return equal(a, b, meter_);
    if (op == "!=") return !equal(a, b, meter_);
    if (op == "<") return less(a, b, meter_);
    if (op == ">") return less(b, a, meter_);
    if (op == "<=") return !less(b, a, meter_);
    if (op == ">=") return !less(a, b, meter_);
    return contains(b, a, meter_) == (op == "in");
  }

  Value compare(const Expr& e) {
    Value left = eval(*e.children[0]);
    for (size_t i = 0; i < e.ops.size(); ++i) {
      Value right = eval(*e.children[i + 1]);
      if (!holds(e.ops[i], left, right)) return Value::boolean(false);
      left = std::move(right);
    }
    return Value::boolean(true);
  }

  Value dict(const Items& items) {
    Members members;
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      const auto same = std::find_if(members.begin(), members.end(), [&](const auto& m) {
        return equal(m.first, items[i], meter_);
      });
      if (same != members.end()) {
        same->second = items[i + 1];
      } else {
        members.emplace_back(items[i], items[i + 1]);
      }
    }
    return Value::dict(std::move(members));
  }

  Value eval(const Expr& e) {
    meter_.step();
    const auto child = [&](size_t i) {
      return e.children[i] ? eval(*e.children[i]) : Value::none();
    };
    switch (e.kind) {
      case ExprKind::kConstant: return e.constant;
      case ExprKind::kName: return find(e.name);
      case ExprKind::kList:
      case ExprKind::kTuple:
      case ExprKind::kDict: {
        Items items;
        for (size_t i = 0; i < e.children.size(); ++i) items.push_back(child(i));
        return e.kind == ExprKind::kDict   ? dict(items)
               : e.kind == ExprKind::kList ? Value::list(std::move(items))
                                           : Value::tuple(std::move(items));
      }
      case ExprKind::kAttribute: return get_attribute(child(0), e.name);
      case ExprKind::kItem: {
        const Value object = child(0);
        return get_item(object, child(1), meter_);
      }
      case ExprKind::kSlice: {
        const Value object = child(0), start = child(1), stop = child(2);
        return slice(object, start, stop, child(3), meter_);
      }
      case ExprKind::kCall: return call(e);
      case ExprKind::kFilter:
        return call_builtin(find_filter(e.name), e, e.children[0] ? child(0) : block_text_);
      case ExprKind::kTest: return call_builtin(find_test(e.name), e, child(0));
      case ExprKind::kNegative: return binary("-", Value::integer(0), child(0), meter_);
      case ExprKind::kNot: return Value::boolean(!truthy(child(0)));
      case ExprKind::kBinary: {
        const Value left = child(0);
        if (e.name == "or" || e.name == "and")
          return truthy(left) == (e.name == "or") ? left : child(1);
        return binary(e.name, left, child(1), meter_);
      }
      case ExprKind::kCompare: return compare(e);
      case ExprKind::kConditional:
        if (truthy(child(1))) return child(0);
        if (e.children[2]) return child(2);
        return Value::undefined(
            "the inline if-expression evaluated to false and no else section was defined");
    }
    return Value();
  }

  Meter meter_;
  std::vector<Scope> scopes_;
  std::string out_;
  Value block_text_;  // what the filters of a filter block get
  int calls_ = 0;
};

}  // namespace

Template::Template(std::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    fail(Failure::kLimit, "the template has " + std::to_string(source.size()) + " bytes; at most " +
                              std::to_string(kMaxSourceBytes) + " are accepted");
  }
  body_ = parse(source);
}

std::string Template::render(const Value& globals, const RenderOptions& options) const {
  return Interpreter(globals, options).render(body_);
}

}  // namespace bicached::jinja
