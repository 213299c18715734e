#include <algorithm>

#include "text/jinja/runtime.h"
#include "text/jinja/template.h"

namespace bicached::jinja {
namespace {

using Scope = std::vector<std::pair<std::string, Value>>;
enum class Flow { kNext, kBreak, kContinue };

/// One rendering: scopes and output. The tree is never changed.
class Interpreter {
 public:
  Interpreter(const Value& globals, const RenderOptions& options) : meter_(options.limits) {
    scopes_.emplace_back();
    for (const auto& [key, value] : builtin_globals(options, meter_))
      scopes_[0].emplace_back(key.text(), value);
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
  struct CallGuard {
    explicit CallGuard(Interpreter& i) : interpreter(i) {
      if (++interpreter.calls_ > interpreter.meter_.limits().max_call_depth) {
        fail(Failure::kLimit, "the template calls itself too deep");
      }
    }
    ~CallGuard() { --interpreter.calls_; }
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
      const Items items = iterate(value);
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

  Flow run(const Body& body) {
    for (const auto& statement : body) {
      meter_.step();
      const Flow flow = run(*statement);
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  Flow run(const Stmt& s) {
    switch (s.kind) {
      case StmtKind::kText: print(s.text); return Flow::kNext;
      case StmtKind::kPrint: print(to_text(eval(*s.value))); return Flow::kNext;
      case StmtKind::kIf:
        for (const auto& [condition, body] : s.branches) {
          if (!condition || truthy(eval(*condition))) return run(body);
        }
        return Flow::kNext;
      case StmtKind::kFor: run_for(s, eval(*s.value), 1); return Flow::kNext;
      case StmtKind::kSet: assign_target(*s.target, eval(*s.value)); return Flow::kNext;
      case StmtKind::kSetBlock: {
        Value value = Value::string(capture_scoped(s.body));
        assign_target(*s.target, s.value ? apply_filters(*s.value, value) : value);
        return Flow::kNext;
      }
      case StmtKind::kFilterBlock:
        print(to_text(apply_filters(*s.value, Value::string(capture_scoped(s.body)))));
        return Flow::kNext;
      case StmtKind::kMacro: assign(s.text, macro(s)); return Flow::kNext;
      case StmtKind::kWith: {
        Scope bound;
        for (const auto& [name, value] : s.bindings) bound.emplace_back(name, eval(*value));
        const ScopeGuard scope(*this);
        scopes_.back() = std::move(bound);
        return run(s.body);
      }
      case StmtKind::kScope: {
        const ScopeGuard scope(*this);
        return run(s.body);
      }
      case StmtKind::kBreak: return Flow::kBreak;
      case StmtKind::kContinue: return Flow::kContinue;
    }
    return Flow::kNext;
  }

  std::string capture_scoped(const Body& body) {
    const ScopeGuard scope(*this);
    std::string saved = std::exchange(out_, {});
    const Flow flow = run(body);
    std::string text = std::exchange(out_, std::move(saved));
    if (flow != Flow::kNext) fail_unsupported("leaving a loop from inside a set or filter block");
    return text;
  }

  void run_for(const Stmt& s, const Value& iterable, int depth) {
    Items items = iterate(iterable);
    meter_.charge(items.size() * sizeof(Value));
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
      run(s.otherwise);
      return;
    }
    auto state = std::make_shared<LoopState>();
    state->items = std::move(items);
    state->depth = depth;
    if (s.recursive) {
      state->recurse = [this, &s, depth](const Arguments& arguments) {
        arguments.check("loop", 1);
        if (arguments.positional.empty()) fail_runtime("loop() needs something to iterate over");
        const CallGuard call(*this);
        std::string saved = std::exchange(out_, {});
        run_for(s, arguments.positional[0], depth + 1);
        return Value::string(std::exchange(out_, std::move(saved)));
      };
    }
    for (; state->index < state->items.size(); ++state->index) {
      meter_.step();
      const ScopeGuard scope(*this);
      assign("loop", Value::loop(state));
      assign_target(*s.target, state->items[state->index]);
      if (run(s.body) == Flow::kBreak) return;
    }
  }

  Value macro(const Stmt& s) {
    const size_t num_scopes = scopes_.size();
    return Value::callable([this, &s, num_scopes](const Arguments& arguments) {
      const CallGuard call(*this);
      if (arguments.positional.size() > s.bindings.size()) {
        fail_runtime("macro '" + s.text + "' takes not more than " +
                     std::to_string(s.bindings.size()) + " argument(s)");
      }
      for (const auto& [name, value] : arguments.named) {
        const bool known = std::any_of(s.bindings.begin(), s.bindings.end(),
                                       [&, &key = name](const auto& b) { return b.first == key; });
        if (!known) fail_runtime("macro '" + s.text + "' takes no keyword argument '" + name + "'");
      }
      // The macro sees the scopes it was defined in, not those of its caller.
      std::vector<Scope> hidden(
          std::make_move_iterator(
              scopes_.begin() + static_cast<std::ptrdiff_t>(std::min(num_scopes, scopes_.size()))),
          std::make_move_iterator(scopes_.end()));
      scopes_.resize(std::min(num_scopes, scopes_.size()));
      std::string saved = std::exchange(out_, {});
      struct Restore {
        Interpreter& self;
        std::vector<Scope>& hidden;
        size_t size;
        ~Restore() {
          self.scopes_.resize(size);
          for (Scope& scope : hidden) self.scopes_.push_back(std::move(scope));
        }
      } restore{*this, hidden, scopes_.size()};
      scopes_.emplace_back();
      for (size_t i = 0; i < s.bindings.size(); ++i) {
        const auto& [name, otherwise] = s.bindings[i];
        const Value* given = arguments.find(i, name);
        assign(name, given       ? *given
                     : otherwise ? eval(*otherwise)
                                 : Value::undefined("parameter '" + name + "' was not provided"));
      }
      run(s.body);
      return Value::string(std::exchange(out_, std::move(saved)));
    });
  }

  Arguments arguments_of(const Expr& e) {
    Arguments arguments;
    for (size_t i = 1; i < e.children.size(); ++i)
      arguments.positional.push_back(eval(*e.children[i]));
    for (const auto& [name, value] : e.named) arguments.named.emplace_back(name, eval(*value));
    return arguments;
  }

  /// A filter chain whose innermost input is a block's text.
  Value apply_filters(const Expr& filter, const Value& input) {
    const Value value = filter.children[0] ? apply_filters(*filter.children[0], input) : input;
    return call_filter(filter.name, value, arguments_of(filter), meter_);
  }

  Value call(const Expr& e) {
    const Value callee = eval(*e.children[0]);
    const Arguments arguments = arguments_of(e);
    if (callee.is(Kind::kCallable)) return callee.function()(arguments);
    if (callee.is(Kind::kLoop) && callee.loop_state()->recurse)
      return callee.loop_state()->recurse(arguments);
    if (callee.is(Kind::kUndefined)) fail_runtime(callee.undefined_message());
    fail_runtime("'" + type_name(callee) + "' object is not callable");
  }

  Value compare(const Expr& e) {
    Value left = eval(*e.children[0]);
    for (size_t i = 0; i < e.ops.size(); ++i) {
      const std::string& op = e.ops[i];
      Value right = eval(*e.children[i + 1]);
      meter_.charge((left.is(Kind::kString) ? left.text().size() : 0) +
                    (right.is(Kind::kString) ? right.text().size() : 0));
      bool holds;
      if (op == "==")
        holds = equal(left, right);
      else if (op == "!=")
        holds = !equal(left, right);
      else if (op == "<")
        holds = less(left, right);
      else if (op == ">")
        holds = less(right, left);
      else if (op == "<=")
        holds = !less(right, left);
      else if (op == ">=")
        holds = !less(left, right);
      else
        holds = contains(right, left) == (op == "in");
      if (!holds) return Value::boolean(false);
      left = std::move(right);
    }
    return Value::boolean(true);
  }

  Value eval_containers(const Expr& e) {
    Items items;
    for (const auto& child : e.children) items.push_back(eval(*child));
    if (e.kind == ExprKind::kList) return Value::list(std::move(items));
    if (e.kind == ExprKind::kTuple) return Value::tuple(std::move(items));
    Members members;
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      auto old = std::find_if(members.begin(), members.end(),
                              [&](const auto& m) { return equal(m.first, items[i]); });
      if (old != members.end()) {
        old->second = items[i + 1];
      } else {
        members.emplace_back(items[i], items[i + 1]);
      }
    }
    return Value::dict(std::move(members));
  }

  Value eval(const Expr& e) {
    meter_.step();
    switch (e.kind) {
      case ExprKind::kConstant: return e.constant;
      case ExprKind::kName: return find(e.name);
      case ExprKind::kList:
      case ExprKind::kTuple:
      case ExprKind::kDict: return eval_containers(e);
      case ExprKind::kAttribute: return get_attribute(eval(*e.children[0]), e.name, meter_);
      case ExprKind::kItem: {
        const Value object = eval(*e.children[0]);
        return get_item(object, eval(*e.children[1]), meter_);
      }
      case ExprKind::kSlice: {
        const Value object = eval(*e.children[0]);
        meter_.charge(rough_bytes(object));
        const auto part = [&](size_t i) {
          return e.children[i] ? eval(*e.children[i]) : Value::none();
        };
        const Value start = part(1), stop = part(2), step = part(3);
        return slice(object, start, stop, step);
      }
      case ExprKind::kCall: return call(e);
      case ExprKind::kFilter: {
        const Value input = eval(*e.children[0]);
        return call_filter(e.name, input, arguments_of(e), meter_);
      }
      case ExprKind::kTest: {
        const Value input = eval(*e.children[0]);
        return Value::boolean(call_test(e.name, input, arguments_of(e)));
      }
      case ExprKind::kUnary: {
        const Value v = eval(*e.children[0]);
        if (!v.is_number()) {
          fail_runtime(v.is(Kind::kUndefined)
                           ? v.undefined_message()
                           : "bad operand type for unary " + e.name + ": '" + type_name(v) + "'");
        }
        return e.name == "-"
                   ? binary("-", v.is(Kind::kFloat) ? Value::number(-0.0) : Value::integer(0), v,
                            meter_)
                   : v;
      }
      case ExprKind::kBinary: {
        const Value left = eval(*e.children[0]);
        return binary(e.name, left, eval(*e.children[1]), meter_);
      }
      case ExprKind::kCompare: return compare(e);
      case ExprKind::kConcat: {
        std::string text;
        for (const auto& child : e.children) {
          const Value v = eval(*child);
          if (v.is_markup()) fail_unsupported("joining escaped text with ~");
          text += to_text(v);
          meter_.charge(text.size());
        }
        return Value::string(std::move(text));
      }
      case ExprKind::kAnd: {
        Value left = eval(*e.children[0]);
        return truthy(left) ? eval(*e.children[1]) : left;
      }
      case ExprKind::kOr: {
        Value left = eval(*e.children[0]);
        return truthy(left) ? left : eval(*e.children[1]);
      }
      case ExprKind::kNot: return Value::boolean(!truthy(eval(*e.children[0])));
      case ExprKind::kConditional:
        if (truthy(eval(*e.children[1]))) return eval(*e.children[0]);
        return e.children[2] ? eval(*e.children[2])
                             : Value::undefined(
                                   "the inline if-expression evaluated to false and no else "
                                   "section was defined");
    }
    return Value();
  }

  Meter meter_;
  std::vector<Scope> scopes_;
  std::string out_;
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
