// A template's text and tags into functions, each of which does its part of a rendering.
#include "text/jinja/expressions.h"

namespace bicached::jinja {
namespace {

/// Names that are assigned together.
struct Targets {
  std::vector<std::string> names;
  bool unpacks = false;

  void assign(Run& run, const Value& value) const {
    if (!unpacks) return run.assign(names[0], value);
    const Items items = iterate(value, run.meter);
    if (items.size() != names.size())
      fail_runtime("can't unpack " + std::to_string(items.size()) + " values into " +
                   std::to_string(names.size()));
    for (size_t i = 0; i < items.size(); ++i) run.assign(names[i], items[i]);
  }
};

template <class Work>
Stmt always_next(Work work) {
  return [work = std::move(work)](Run& run) {
    work(run);
    return Flow::kNext;
  };
}

/// An attribute of the variable `loop` at one of its items.
Value loop_attribute(const Items& items, size_t index, const std::string& name) {
  if (name == "index") return Value::integer(index + 1);
  if (name == "index0") return Value::integer(index);
  if (name == "revindex") return Value::integer(items.size() - index);
  if (name == "revindex0") return Value::integer(items.size() - index - 1);
  if (name == "length") return Value::integer(items.size());
  if (name == "first") return Value::boolean(index == 0);
  if (name == "last") return Value::boolean(index + 1 == items.size());
  const size_t other = name == "previtem" ? index - 1 : index + 1;
  if (name != "previtem" && name != "nextitem") fail_unsupported("loop." + name);
  return other < items.size() ? items[other] : Value::undefined("there is no " + name);
}

Flow run_loop(Run& run, Items given, const Targets& targets, const Body& body) {
  struct State {
    Items items;
    size_t index = 0;
  };
  // A template may keep `loop` for later.
  const auto state = std::make_shared<State>(State{std::move(given)});
  for (; state->index < state->items.size(); ++state->index) {
    run.meter.step();
    const ScopeGuard scope(run);
    run.assign("loop", Value::loop([state](const Arguments& name) {
                 return loop_attribute(state->items, state->index, name.positional[0].text());
               }));
    targets.assign(run, state->items[state->index]);
    if (run.run(body) == Flow::kBreak) break;
  }
  return Flow::kNext;
}

class Parser : ExpressionParser {
 public:
  explicit Parser(std::string_view source) : ExpressionParser(source) {}

  /// Until a tag whose name is in `ends` (left unread behind its TagBegin) or the template's end.
  Body parse_body(std::initializer_list<std::string_view> ends) {
    const Nesting nesting(*this);
    Body body;
    while (!at(TokenKind::kEnd)) {
      if (at(TokenKind::kText)) {
        body.push_back(always_next([text = take()](Run& run) { run.print(text); }));
      } else if (take(TokenKind::kPrintBegin)) {
        const Expr value = parse_tuple();
        expect(TokenKind::kPrintEnd);
        body.push_back(
            always_next([value](Run& run) { run.print(to_text(value(run), run.meter)); }));
      } else {
        expect(TokenKind::kTagBegin);
        if (!at(TokenKind::kName)) unexpected();
        if (std::ranges::find(ends, now().text) != ends.end()) return body;
        body.push_back(parse_tag());
      }
    }
    if (ends.size() == 0) return body;
    syntax("Unexpected end of template. Jinja was looking for the tag '" +
           std::string(*ends.begin()) + "'");
  }

 private:
  /// What stands between a tag's end and the tag `end`.
  Body parse_block(std::string_view end) {
    expect(TokenKind::kTagEnd);
    Body body = parse_body({end});
    take();
    expect(TokenKind::kTagEnd);
    return body;
  }

  Stmt parse_tag() {
    const std::string tag = take();
    if (tag == "if") return parse_if();
    if (tag == "for") return parse_for();
    if (tag == "set") return parse_set();
    if (tag == "macro") return parse_macro();
    if (tag == "filter") {
      const Expr input = node({}, [](Run& run, const Exprs&) { return run.block_text; });
      const Expr filters = parse_filters(parse_builtin("filter", find_filter, input));
      return always_next([filters, body = parse_block("endfilter")](Run& run) {
        run.block_text = Value::string(run.text_of(body));
        run.print(to_text(filters(run), run.meter));
      });
    }
    if (tag == "generation") {
      return [body = parse_block("endgeneration")](Run& run) {
        const ScopeGuard scope(run);
        return run.run(body);
      };
    }
    if (tag != "break" && tag != "continue") fail_unsupported("the tag '" + tag + "'");
    if (loops_ == 0) syntax("'" + tag + "' outside a loop");
    expect(TokenKind::kTagEnd);
    return [flow = tag == "break" ? Flow::kBreak : Flow::kContinue](Run&) { return flow; };
  }

  Stmt parse_if() {
    std::vector<std::pair<Expr, Body>> branches;
    Body otherwise;
    ++branches_;
    for (std::string tag = "elif"; tag == "elif";) {
      Expr condition = parse_tuple();
      expect(TokenKind::kTagEnd);
      branches.emplace_back(std::move(condition), parse_body({"endif", "elif", "else"}));
      if (branches.size() > kMaxNesting) fail(Failure::kLimit, "an if has too many elif");
      tag = take();
      if (tag == "else") otherwise = parse_block("endif");
      if (tag == "endif") expect(TokenKind::kTagEnd);
    }
    --branches_;
    return [branches = std::move(branches), otherwise = std::move(otherwise)](Run& run) {
      for (const auto& [condition, body] : branches) {
        if (truthy(condition(run))) return run.run(body);
      }
      return run.run(otherwise);
    };
  }

  Stmt parse_for() {
    const Targets targets = parse_targets();
    expect("in");
    const Expr over = parse_tuple(true);
    const Expr condition = take("if") ? parse_expression() : Expr();
    if (at("recursive")) fail_unsupported("a recursive loop");
    expect(TokenKind::kTagEnd);
    ++loops_;
    Body body = parse_body({"endfor", "else"});
    --loops_;
    Body otherwise;
    if (take() == "else") {
      otherwise = parse_block("endfor");
    } else {
      expect(TokenKind::kTagEnd);
    }
    return [targets, over, condition, body = std::move(body),
            otherwise = std::move(otherwise)](Run& run) {
      Items items = iterate(over(run), run.meter);
      if (condition.is_given()) {
        std::erase_if(items, [&](const Value& item) {
          const ScopeGuard scope(run);
          targets.assign(run, item);
          return !truthy(condition(run));
        });
      }
      if (!items.empty()) return run_loop(run, std::move(items), targets, body);
      const ScopeGuard scope(run);
      return run.run(otherwise);
    };
  }

  std::string parse_target() {
    std::string name = expect(TokenKind::kName);
    for (const char* constant : {"true", "false", "none", "True", "False", "None"}) {
      if (name == constant) syntax("can't assign to '" + name + "'");
    }
    return name;
  }

  Targets parse_targets() {
    const bool bracket = take("(");
    std::string first = parse_target();
    Targets targets{{std::move(first)}, at(",")};
    while (take(",")) {
      if (at("(")) fail_unsupported("unpacking into nested targets");
      if (!at(")") && !at("in")) targets.names.push_back(parse_target());
    }
    if (bracket) expect(")");
    return targets;
  }

  Stmt parse_set() {
    const std::string name = parse_target();
    const std::string attribute = take(".") ? expect(TokenKind::kName) : "";
    if (at(",")) fail_unsupported("set with several names");
    if (at("|")) fail_unsupported("a set block with a filter");
    Expr value;
    if (take("=")) {
      value = parse_tuple();
      expect(TokenKind::kTagEnd);
    } else {
      value = node({}, [body = parse_block("endset")](Run& run, const Exprs&) {
        return Value::string(run.text_of(body));
      });
    }
    return always_next([name, attribute, value](Run& run) {
      const Value given = value(run);
      if (attribute.empty()) return run.assign(name, given);
      const Value object = run.find(name);
      if (!object.is(Kind::kNamespace))
        fail_runtime("cannot assign attribute on non-namespace object");
      object.set_member(attribute, given);
    });
  }

  Stmt parse_macro() {
    const auto macro = std::make_shared<Macro>();
    macro->name = expect(TokenKind::kName);
    expect("(");
    while (!take(")")) {
      std::string name = expect(TokenKind::kName);
      macro->parameters.emplace_back(std::move(name), take("=") ? parse_expression() : Expr());
      if (!at(")")) expect(",");
    }
    const int loops = std::exchange(loops_, 0);
    macro->body = parse_block("endmacro");
    loops_ = loops;
    return always_next([macro](Run& run) {
      run.assign(
          macro->name,
          Value::callable([&run, macro, num_scopes = run.scopes.size()](const Arguments& given) {
            return run.call(*macro, given, num_scopes);
          }));
    });
  }

  int loops_ = 0;
};

}  // namespace

Template::Template(std::string_view source) {
  if (source.size() > kMaxSourceBytes)
    fail(Failure::kLimit, "the template has " + std::to_string(source.size()) + " bytes; at most " +
                              std::to_string(kMaxSourceBytes) + " are accepted");
  body_ = Parser(source).parse_body({});
}

std::string Template::render(const Value& globals, const RenderOptions& options) const {
  Run run(globals, options);
  run.run(body_);
  return std::move(run.out);
}

}  // namespace bicached::jinja
