// A template's text and tags into functions, each of which does its part of a rendering.
#include <algorithm>
#include <optional>

#include "text/jinja/reader.h"
#include "text/jinja/run.h"

namespace bicached::jinja {
namespace {

constexpr int kMaxNesting = 100;   // of brackets, prefixes and blocks in the source
constexpr size_t kMaxLinks = 300;  // of what stands in a row: operators, filters, elif

/// Operators between two values, those that bind least first.
constexpr std::pair<std::string_view, int> kOperators[] = {
    {"or", 0}, {"and", 1}, {"==", 3}, {"!=", 3}, {"<", 3}, {">", 3},
    {"<=", 3}, {">=", 3},  {"in", 3}, {"+", 4},  {"-", 4}, {"~", 5},
    {"*", 6},  {"/", 6},   {"//", 6}, {"%", 6},  {"**", 6}};
constexpr int kNotLevel = 2, kCompareLevel = 3, kUnaryLevel = 7;

Expression constant(Value v) {
  return [v = std::move(v)](Run&) { return v; };
}

Items values_of(Run& run, const std::vector<Expression>& expressions) {
  Items items;
  for (const Expression& expression : expressions) items.push_back(run.eval(expression));
  return items;
}

/// Keys and values in turn; of a key that occurs twice the last value.
Value dict_of(const Items& keys_and_values, Meter& meter) {
  Members members;
  for (size_t i = 0; i + 1 < keys_and_values.size(); i += 2) {
    if (const Value* same = find_member(members, keys_and_values[i], meter)) {
      const_cast<Value&>(*same) = keys_and_values[i + 1];
    } else {
      members.emplace_back(keys_and_values[i], keys_and_values[i + 1]);
    }
  }
  return Value::dict(std::move(members));
}

Expression tuple_of(std::vector<Expression> items) {
  return [items = std::move(items)](Run& run) {
    return run.meter.made(Value::list(values_of(run, items), kTuple));
  };
}

using Names = std::vector<std::string>;

/// Several names take a value apart.
void assign(Run& run, const Names& names, const Value& value) {
  if (names.size() == 1) return run.assign(names[0], value);
  const Items items = iterate(value, run.meter);
  if (items.size() != names.size())
    fail_runtime("can't unpack " + std::to_string(items.size()) + " values into " +
                 std::to_string(names.size()) + " names");
  for (size_t i = 0; i < items.size(); ++i) run.assign(names[i], items[i]);
}

void run_loop(Run& run, Items items, const Names& names, const Body& body) {
  const auto loop = std::make_shared<Loop>(std::move(items));  // a template may keep it for later
  for (size_t i = 0; i < loop->items.size(); ++i) {
    loop->index = i;
    run.meter.step();
    const Run::ScopeGuard guard(run);
    run.assign("loop", Value::loop(loop));
    assign(run, names, loop->items[i]);
    run.run(body);
    if (std::exchange(run.flow, Flow::kNext) == Flow::kBreak) break;
  }
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
      if (!text.empty()) body.push_back([text](Run& run) { run.print(text); });
      if (delimiter == '{') {
        body.push_back(parse_print());
      } else if (delimiter == '%') {
        if (std::ranges::find(ends, now()) != ends.end()) return body;
        body.push_back(parse_tag());
      } else if (ends.size() > 0) {
        syntax("the tag '" + std::string(*ends.begin()) + "' is missing");
      } else {
        return body;
      }
    }
  }

 private:
  // --- expressions, by Jinja's precedence

  /// One expression, or several with commas: a tuple. In `for`, an `if` is not part of it.
  Expression parse_tuple(bool in_for = false) {
    std::vector<Expression> items;
    bool has_comma = false;
    do {
      items.push_back(in_for ? parse_operators(0) : parse_expression());
      has_comma = at(",") || has_comma;
    } while (take(",") && now().find_first_of(")}") == std::string_view::npos);
    return has_comma ? tuple_of(std::move(items)) : std::move(items[0]);
  }

  Expression parse_expression() {
    const Level level(nesting_, kMaxNesting);
    Expression value = parse_operators(0);
    if (!take("if")) return value;
    ++branches_;
    Expression condition = parse_operators(0);
    Expression otherwise =
        take("else") ? parse_expression()
                     : constant(Value::undefined("the if-expression is false and has no else"));
    if (at("if")) refuse("an if behind an if without else");
    --branches_;
    return [value = std::move(value), condition = std::move(condition),
            otherwise = std::move(otherwise)](Run& run) {
      return run.eval(truthy(run.eval(condition)) ? value : otherwise);
    };
  }

  /// The operator of that level that comes next, or "".
  std::string operator_at(int level) const {
    if (level == kCompareLevel && at("not") && before("in")) return "not in";
    for (const auto& [text, of] : kOperators) {
      if (of == level && at(text)) return std::string(text);
    }
    return "";
  }

  Expression parse_operators(int level) {
    if (level == kUnaryLevel) return parse_unary(true);
    if (level == kNotLevel && take("not")) {
      const Level nesting(nesting_, kMaxNesting);
      return [value = parse_operators(level)](Run& run) {
        return Value::boolean(!truthy(run.eval(value)));
      };
    }
    Expression first = parse_operators(level + 1);
    std::vector<std::pair<std::string, Expression>> others;
    for (std::string op; !(op = operator_at(level)).empty();) {
      if (level == kCompareLevel && !others.empty()) refuse("a chain of comparisons");
      if (take() == "not") take();
      add_link(others, {op, parse_operators(level + 1)});
    }
    if (others.empty()) return first;
    return [first = std::move(first), others = std::move(others)](Run& run) {
      Value value = run.eval(first);
      for (const auto& [op, other] : others) {
        if (op != "and" && op != "or") {
          value = run.meter.made(binary(op, value, run.eval(other), run.meter));
        } else if (truthy(value) != (op == "or")) {
          value = run.eval(other);
        }
      }
      return value;
    };
  }

  Expression parse_unary(bool with_filters) {
    if (at("+")) refuse("the sign +");
    std::vector<Step> steps;
    Expression value;
    if (take("-")) {
      const Level level(nesting_, kMaxNesting);
      value = parse_unary(false);
      steps.push_back(
          [](Run& run, const Value& v) { return binary("-", Value::integer(0), v, run.meter); });
    } else {
      value = parse_primary();
      while (at(".") || at("[") || at("(")) add_link(steps, parse_postfix());
    }
    while (with_filters && (at("|") || at("is"))) {
      add_link(steps, take("|") ? parse_builtin(kFilter) : parse_test());
    }
    if (steps.empty()) return value;
    return [value = std::move(value), steps = std::move(steps)](Run& run) {
      return run.apply(steps, run.eval(value));
    };
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
      Expression value = at(")") ? tuple_of({}) : parse_tuple();
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
    return [items = std::move(items), is_dict](Run& run) {
      Items values = values_of(run, items);
      return run.meter.made(is_dict ? dict_of(values, run.meter) : Value::list(std::move(values)));
    };
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
    if (!at("(")) return [name](Run&, const Value& self) { return get_attribute(self, name); };
    return [name, given = parse_arguments()](Run& run, const Value& self) {
      const Arguments arguments = run.arguments(given);
      const Builtin* method = find_method(self, name);
      return method ? call(*method, self, arguments, run.meter)
                    : run.call(get_attribute(self, name), arguments);
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

  NamedExpressions parse_arguments() {
    NamedExpressions given;
    expect("(");
    while (!take(")")) {
      if (at("*") || at("**")) refuse("a call with * or **");
      std::string name;
      if (at_name() && before("=")) {
        name = take();
        take();
      } else if (!given.empty() && !given.back().first.empty()) {
        syntax("a positional argument follows a named one");
      }
      given.emplace_back(std::move(name), parse_expression());
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

  Step parse_test() {
    expect("is");
    const bool negated = take("not");
    Step test = parse_builtin(kTest);
    if (at("is")) syntax("tests can't be chained");
    if (!negated) return test;
    return [test = std::move(test)](Run& run, const Value& self) {
      return Value::boolean(!truthy(test(run, self)));
    };
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

  Statement parse_print() {
    Expression value = parse_tuple();
    close("}}");
    return [value = std::move(value)](Run& run) { run.print(to_text(run.eval(value), run.meter)); };
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
      Expression condition = is_else ? constant(Value::boolean(true)) : parse_tuple();
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
    Names names = parse_targets();
    expect("in");
    Expression over = parse_tuple(true);
    Expression condition = take("if") ? parse_expression() : Expression();
    if (at("recursive")) refuse("a recursive loop");
    close("%}");
    ++loops_;
    Body body = parse_body({"endfor", "else"});
    --loops_;
    Body otherwise;
    if (take() == "else") {
      otherwise = parse_block("endfor");
    } else {
      close("%}");
    }
    return [names = std::move(names), over = std::move(over), condition = std::move(condition),
            body = std::move(body), otherwise = std::move(otherwise)](Run& run) {
      Items items = iterate(run.eval(over), run.meter);
      if (condition) {
        std::erase_if(items, [&](const Value& item) {
          const Run::ScopeGuard guard(run);
          assign(run, names, item);
          return !truthy(run.eval(condition));
        });
      }
      if (!items.empty()) return run_loop(run, std::move(items), names, body);
      const Run::ScopeGuard guard(run);
      run.run(otherwise);
    };
  }

  std::string parse_target() {
    std::string name = take_name();
    if (constant_of(name)) syntax("can't assign to '" + name + "'");
    return name;
  }

  Names parse_targets() {
    const bool bracket = take("(");
    Names names{parse_target()};
    while (take(",")) {
      if (at("(") || at(")") || at("in")) refuse("unpacking into such targets");
      names.push_back(parse_target());
    }
    if (bracket) expect(")");
    return names;
  }

  Statement parse_set() {
    const std::string name = parse_target();
    const std::string attribute = take(".") ? take_name() : "";
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
      if (attribute.empty()) return run.assign(name, std::move(given));
      const Value object = run.find(name);
      if (!object.is(kNamespace)) fail_runtime("cannot assign attribute on non-namespace object");
      object.set_member(attribute, std::move(given));
    };
  }

  Statement parse_macro() {
    const auto macro = std::make_shared<Macro>();
    macro->name = take_name();
    expect("(");
    while (!take(")")) {
      std::string name = take_name();
      macro->parameters.emplace_back(std::move(name),
                                     take("=") ? parse_expression() : Expression());
      if (!at(")")) expect(",");
    }
    const int loops = std::exchange(loops_, 0);
    macro->body = parse_block("endmacro");
    loops_ = loops;
    return [macro](Run& run) {
      const size_t home = run.scopes.size() - 1;
      run.assign(macro->name, Value::callable([&run, macro, home](const Arguments& given) {
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
      const Value text = run.apply(filters, Value::string(run.text_of(body)));
      run.print(to_text(text, run.meter));
    };
  }

  template <class Link>
  static void add_link(std::vector<Link>& row, Link link) {
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
