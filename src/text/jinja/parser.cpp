// A template's text and tags into functions, each of which does its part of a rendering.
#include <algorithm>
#include <optional>

#include "text/jinja/reader.h"

namespace bicached::jinja {
namespace {

constexpr int kMaxNesting = 100;   // of brackets, prefixes and blocks in the source
constexpr size_t kMaxLinks = 300;  // of what stands in a row: operators, filters, elif

/// Operators between two values and how much they bind.
constexpr std::pair<std::string_view, int> kOperators[] = {
    {"or", 0}, {"and", 1}, {"==", 3}, {"!=", 3}, {"<", 3}, {">", 3},
    {"<=", 3}, {">=", 3},  {"in", 3}, {"+", 4},  {"-", 4}, {"~", 5},
    {"*", 6},  {"/", 6},   {"//", 6}, {"%", 6},  {"**", 6}};
constexpr int kNotLevel = 2, kCompareLevel = 3;

Expression constant(Value v) {
  return [v = std::move(v)](Run&) { return v; };
}

/// A list, a tuple or a dict; of a dict, keys and values in turn.
Expression collection(std::vector<Expression> parts, Kind kind) {
  return [parts = std::move(parts), kind](Run& run) {
    Items items;
    for (const Expression& part : parts) items.push_back(run.eval(part));
    if (kind != kDict) return run.meter.made(Value::list(std::move(items), kind));
    Members members;
    for (size_t i = 0; i < items.size(); i += 2) {
      const Value* same = find_member(members, items[i], run.meter);
      if (!same) members.emplace_back(items[i], items[i + 1]);
      if (same) const_cast<Value&>(*same) = items[i + 1];
    }
    return run.meter.made(Value::dict(std::move(members)));
  };
}

/// A value and what is done with it, step by step.
Expression chain(Expression first, std::vector<Step> steps) {
  if (steps.empty()) return first;
  return [first = std::move(first), steps = std::move(steps)](Run& run) {
    return run.apply(steps, run.eval(first));
  };
}

Value negated(Run&, const Value& v) { return Value::boolean(!truthy(v)); }
Value minus(Run& run, const Value& v) { return binary("-", Value::integer(0), v, run.meter); }

Statement print(Expression value) {
  return [value = std::move(value)](Run& run) { run.print(run.eval(value)); };
}

class Parser : Reader {
 public:
  using Reader::Reader;

  /// Until a tag whose name is in `ends` (left unread behind its "{%") or the template's end.
  Body parse_body(std::initializer_list<std::string_view> ends) {
    const Level level(nesting_, kMaxNesting);
    Body body;
    for (;;) {
      std::string text;
      const char delimiter = read_text(text);
      if (!text.empty()) body.push_back(print(constant(Value::string(std::move(text)))));
      if (delimiter == 0 && ends.size() > 0)
        syntax("the tag '" + std::string(*ends.begin()) + "' is missing");
      if (delimiter == 0 || (delimiter == '%' && std::ranges::find(ends, now()) != ends.end()))
        return body;
      body.push_back(delimiter == '%' ? parse_tag() : print(parse_tuple()));
      if (delimiter == '{') close("}}");
    }
  }

 private:
  // --- expressions, by Jinja's precedence

  /// One expression, or several with commas: a tuple. In a tag, an `if` may not be part of it.
  Expression parse_tuple(bool without_if = false) {
    std::vector<Expression> items;
    bool has_comma = false;
    do {
      items.push_back(without_if ? parse_operators(0) : parse_expression());
      has_comma = at(",") || has_comma;
    } while (take(",") && now().find_first_of(")}") == std::string_view::npos);
    return has_comma ? collection(std::move(items), kTuple) : std::move(items[0]);
  }

  Expression parse_expression() {
    const Level level(nesting_, kMaxNesting);
    Expression value = parse_operators(0);
    if (!take("if")) return value;
    ++branches_;
    Expression condition = parse_operators(0);
    Value none = Value::undefined("the if-expression is false and has no else");
    Expression otherwise = take("else") ? parse_expression() : constant(std::move(none));
    if (at("if")) refuse("an if behind an if without else");
    --branches_;
    return [value = std::move(value), condition = std::move(condition),
            otherwise = std::move(otherwise)](Run& run) {
      return run.eval(truthy(run.eval(condition)) ? value : otherwise);
    };
  }

  /// The operator that comes next, and its level: -1 if there is none.
  std::pair<std::string, int> operator_ahead() const {
    if (at("not") && before("in")) return {"not in", kCompareLevel};
    for (const auto& [op, level] : kOperators) {
      if (at(op)) return {std::string(op), level};
    }
    return {"", -1};
  }

  /// With the operators that bind so much at least.
  Expression parse_operators(int least) {
    const Level nesting(nesting_, kMaxNesting);
    const bool is_negated = least <= kNotLevel && take("not");
    Expression first = is_negated ? parse_operators(kNotLevel) : parse_unary(true);
    std::vector<Step> steps;
    if (is_negated) steps.push_back(negated);
    for (int last = -1;;) {
      const auto [op, level] = operator_ahead();
      if (level < least) return chain(std::move(first), std::move(steps));
      if (level == kCompareLevel && last == level) refuse("a chain of comparisons");
      last = level;
      if (take() == "not") take();
      add_link(steps, [op, other = parse_operators(level + 1)](Run& run, const Value& value) {
        if (op == "and" || op == "or")
          return truthy(value) == (op == "or") ? value : run.eval(other);
        return run.meter.made(binary(op, value, run.eval(other), run.meter));
      });
    }
  }

  Expression parse_unary(bool with_filters) {
    size_t num_signs = 0;
    while (take("-")) ++num_signs;
    if (at("+")) refuse("the sign +");
    Expression value = parse_primary();
    std::vector<Step> steps;
    while (at(".") || at("[") || at("(")) add_link(steps, parse_postfix());
    for (; num_signs > 0; --num_signs) add_link(steps, minus);
    while (with_filters && (at("|") || at("is"))) {
      const bool is_filter = take() == "|";
      const bool is_not = !is_filter && take("not");
      add_link(steps, parse_builtin(is_filter ? kFilter : kTest));
      if (is_not) steps.push_back(negated);
      if (!is_filter && at("is")) syntax("tests can't be chained");
    }
    return chain(std::move(value), std::move(steps));
  }

  Expression parse_primary() {
    if (at_name()) {
      const std::string name = take();
      if (const std::optional<Value> value = constant_of(name)) return constant(*value);
      return [name](Run& run) { return run.find(name); };
    }
    if (at_integer()) return constant(take_integer());
    if (at_string()) {
      std::string text;
      while (at_string()) text += take_string();
      return constant(Value::string(std::move(text)));
    }
    if (take("(")) {
      Expression value = at(")") ? collection({}, kTuple) : parse_tuple();
      expect(")");
      return value;
    }
    const bool is_dict = take("{");
    if (!is_dict) expect("[");
    std::vector<Expression> items;
    while (!take(is_dict ? "}" : "]")) {
      items.push_back(parse_expression());
      if (is_dict) {
        expect(":");
        items.push_back(parse_expression());
      }
      if (!at(is_dict ? "}" : "]")) expect(",");
    }
    return collection(std::move(items), is_dict ? kDict : kList);
  }

  static std::optional<Value> constant_of(std::string_view name) {
    if (name == "true" || name == "True") return Value::boolean(true);
    if (name == "false" || name == "False") return Value::boolean(false);
    if (name == "none" || name == "None") return Value::none();
    return std::nullopt;
  }

  /// An attribute, item, slice or call.
  Step parse_postfix() {
    if (take("[")) return parse_subscript();
    if (at("(")) {
      return [given = parse_arguments()](Run& run, const Value& self) {
        return run.call(self, run.arguments(given));
      };
    }
    expect(".");
    if (at_integer()) return item(constant(take_integer()));
    const std::string name = take_name();
    if (!at("("))
      return [name](Run& run, const Value& self) { return get_attribute(self, name, run.meter); };
    return [name, given = parse_arguments()](Run& run, const Value& self) {
      const Arguments arguments = run.arguments(given);
      const Builtin* method = find_method(self, name);
      return method ? call(*method, self, arguments, run.meter)
                    : run.call(get_attribute(self, name, run.meter), arguments);
    };
  }

  static Step item(Expression key) {
    return [key = std::move(key)](Run& run, const Value& self) {
      return get_item(self, run.eval(key), run.meter);
    };
  }

  Step parse_subscript() {
    std::array<Expression, 3> parts;
    size_t colons = 0;
    while (!take("]")) {
      if (at(",")) refuse("a subscript with commas");
      if (colons < 2 && take(":")) {
        ++colons;
      } else {
        if (parts[colons]) unexpected();
        parts[colons] = parse_expression();
      }
    }
    if (colons == 0 && !parts[0]) unexpected();
    if (colons == 0) return item(std::move(parts[0]));
    return [parts = std::move(parts)](Run& run, const Value& self) {
      const Value start = run.eval(parts[0]), stop = run.eval(parts[1]);
      return run.meter.made(slice(self, {start, stop, run.eval(parts[2])}, run.meter));
    };
  }

  /// What is called with, or a macro's parameters with their defaults.
  NamedExpressions parse_arguments(bool of_macro = false) {
    NamedExpressions given;
    expect("(");
    while (!take(")")) {
      if (at("*") || at("**")) refuse("a call with * or **");
      const std::string name = of_macro || (at_name() && before("=")) ? take_name() : "";
      if (name.empty() && !given.empty() && !given.back().first.empty())
        syntax("a positional argument follows a named one");
      const bool has_value = name.empty() || take("=");
      Value absent = Value::undefined("parameter '" + name + "' was not provided");
      given.emplace_back(name, has_value ? parse_expression() : constant(std::move(absent)));
      if (!at(")")) expect(",");
    }
    return given;
  }

  /// A filter or test. One that is not known is refused when it is reached, if it need not be.
  Step parse_builtin(Use use) {
    const std::string name = take_name();
    const std::string refused = (use == kTest ? "the test '" : "the filter '") + name + "'";
    const Builtin* builtin = find_builtin(use, name);
    if (!builtin && branches_ == 0) refuse(refused);
    NamedExpressions given;
    if (at("(")) {
      given = parse_arguments();
    } else if (use == kTest && begins_argument()) {
      given.emplace_back("", parse_unary(false));
    }
    return [builtin, refused, given = std::move(given)](Run& run, const Value& self) {
      if (!builtin) refuse(refused);
      return call(*builtin, self, run.arguments(given), run.meter);
    };
  }

  /// Whether what comes next is a test's argument without brackets.
  bool begins_argument() const {
    constexpr std::string_view kBehindTest[] = {"else", "or", "and", "if", "in", "not", "is"};
    return at_string() || at_integer() || at("[") || at("{") ||
           (at_name() && std::ranges::find(kBehindTest, now()) == std::end(kBehindTest));
  }

  // --- statements

  /// What stands between a tag's end and the tag `end`.
  Body parse_block(std::string_view end) {
    close("%}");
    Body body = parse_body({end});
    take();
    close("%}");
    return body;
  }

  Statement parse_tag() {
    const std::string tag = take_name();
    if (tag == "if") return parse_if();
    if (tag == "for") return parse_for();
    if (tag == "set") return parse_set();
    if (tag == "macro") return parse_macro();
    if (tag == "filter") return parse_filter_block();
    if (tag == "generation") {
      return [body = parse_block("endgeneration")](Run& run) {
        const Run::ScopeGuard guard(run);
        run.run(body);
      };
    }
    if (tag != "break" && tag != "continue") refuse("the tag '" + tag + "'");
    if (loops_ == 0) syntax("'" + tag + "' outside a loop");
    close("%}");
    return [flow = tag == "break" ? Flow::kBreak : Flow::kContinue](Run& run) { run.flow = flow; };
  }

  Statement parse_if() {
    std::vector<std::pair<Expression, Body>> branches;
    ++branches_;
    for (std::string tag = "if"; tag != "endif"; tag = take()) {
      const bool is_else = tag == "else";
      Expression condition = is_else ? constant(Value::boolean(true)) : parse_tuple(true);
      close("%}");
      add_link(branches, {std::move(condition), parse_body({"endif", "elif", "else"})});
      if (is_else && !at("endif")) unexpected();
    }
    --branches_;
    close("%}");
    return [branches = std::move(branches)](Run& run) {
      for (const auto& [condition, body] : branches) {
        if (truthy(run.eval(condition))) return run.run(body);
      }
    };
  }

  Statement parse_for() {
    Items names = parse_targets();
    expect("in");
    Expression over = parse_tuple(true);
    Expression condition = take("if") ? parse_expression() : Expression();
    if (at("recursive")) refuse("a recursive loop");
    ++loops_;
    Body body = parse_block("endfor");
    --loops_;
    return [names = std::move(names), over = std::move(over), condition = std::move(condition),
            body = std::move(body)](Run& run) {
      Items items = iterate(run.eval(over), run.meter);
      if (condition) {
        std::erase_if(items, [&](const Value& item) {
          const Run::ScopeGuard guard(run);
          run.assign(names, item);
          return !truthy(run.eval(condition));
        });
      }
      run.loop(std::move(items), names, body);
    };
  }

  Value parse_target() {
    const std::string name = take_name();
    if (constant_of(name)) syntax("can't assign to '" + name + "'");
    return Value::string(name);
  }

  Items parse_targets() {
    const bool bracket = take("(");
    Items names{parse_target()};
    while (take(",")) {
      if (at("(") || at(")") || at("in")) refuse("unpacking into such targets");
      names.push_back(parse_target());
    }
    if (bracket) expect(")");
    return names;
  }

  Statement parse_set() {
    const Value name = parse_target();
    const Value attribute = take(".") ? Value::string(take_name()) : Value();
    if (at(",")) refuse("set with several names");
    if (at("|")) refuse("a set block with a filter");
    Expression value;
    if (take("=")) {
      value = parse_tuple();
      close("%}");
    } else {
      value = [body = parse_block("endset")](Run& run) { return Value::string(run.text_of(body)); };
    }
    return [name, attribute, value = std::move(value)](Run& run) {
      Value given = run.eval(value);
      if (attribute.is(kUndefined)) return run.assign(name, std::move(given));
      const Value object = run.find(name.text());
      if (!object.is(kNamespace)) fail_runtime("cannot assign attribute on non-namespace object");
      if (given.is(kNamespace)) refuse("a namespace inside another value");
      set_name(object.members_of_namespace(), attribute, std::move(given));
    };
  }

  Statement parse_macro() {
    const auto macro = std::make_shared<Macro>();
    macro->name = take_name();
    macro->parameters = parse_arguments(true);
    const int loops = std::exchange(loops_, 0);
    macro->body = parse_block("endmacro");
    loops_ = loops;
    return [macro](Run& run) {
      const size_t home = run.scopes.size() - 1;
      run.assign(Value::string(macro->name),
                 Value::callable([&run, macro, home](const Arguments& given) {
                   return run.call(*macro, given, home);
                 }));
    };
  }

  Statement parse_filter_block() {
    std::vector<Step> filters;
    do {
      add_link(filters, parse_builtin(kFilter));
    } while (take("|"));
    return [filters = std::move(filters), body = parse_block("endfilter")](Run& run) {
      run.print(run.apply(filters, Value::string(run.text_of(body))));
    };
  }

  template <class Link>
  static void add_link(std::vector<Link>& row, std::type_identity_t<Link> link) {
    if (row.size() == kMaxLinks) fail(Failure::kLimit, "the template has too long a row of steps");
    row.push_back(std::move(link));
  }

  int nesting_ = 0;
  int branches_ = 0;  // inside these an unknown filter or test is an error only when it is reached
  int loops_ = 0;
};

}  // namespace

Template::Template(std::string_view source) {
  if (source.size() > kMaxSourceBytes)
    fail(Failure::kLimit, "a template has at most " + std::to_string(kMaxSourceBytes) + " bytes");
  body_ = Parser(source).parse_body({});
}

std::string Template::render(const Value& globals, const RenderOptions& options) const {
  Run run(globals, options);
  run.run(body_);
  return std::move(run.out);
}

}  // namespace bicached::jinja
