#pragma once

#include <algorithm>
#include <charconv>

#include "text/jinja/lexer.h"
#include "text/jinja/run.h"

namespace bicached::jinja {

/// Tokens of expressions into a tree of functions, by Jinja's precedence. One template.
class ExpressionParser : protected TokenReader {
 protected:
  static constexpr int kMaxNesting = 100;  // of brackets, prefixes and blocks in the source
  static constexpr int kMaxDepth = 300;    // of an expression's tree

  explicit ExpressionParser(std::string_view source) : TokenReader(tokenize(source)) {}

  /// Operators between two values, those that bind least first.
  static constexpr std::pair<std::string_view, int> kOperators[] = {
      {"or", 0}, {"and", 1}, {"==", 3}, {"!=", 3}, {"<", 3}, {">", 3},
      {"<=", 3}, {">=", 3},  {"in", 3}, {"+", 4},  {"-", 4}, {"~", 5},
      {"*", 6},  {"/", 6},   {"//", 6}, {"%", 6},  {"**", 6}};
  static constexpr int kNotLevel = 2, kCompareLevel = 3, kUnaryLevel = 7;

  /// What is called with: expressions, of which the last ones have names.
  struct CallWith {
    Exprs values;
    std::vector<std::string> names;
  };

  struct Nesting {
    explicit Nesting(ExpressionParser& p) : parser(p) {
      if (++parser.nesting_ > kMaxNesting) fail(Failure::kLimit, "the template is nested too deep");
    }
    ~Nesting() { --parser.nesting_; }
    ExpressionParser& parser;
  };

  int branches_ = 0;  // inside these an unknown filter or test is an error only when it is reached

  /// `work(run, children)` as an expression.
  template <class Work>
  Expr node(Exprs children, Work work) {
    int depth = 1;
    for (const Expr& child : children) depth = std::max(depth, child.depth + 1);
    if (depth > kMaxDepth)
      fail(Failure::kLimit, "an expression of the template is nested too deep");
    auto eval = [children = std::move(children), work = std::move(work)](Run& run) {
      return work(run, children);
    };
    return {std::make_shared<const std::function<Value(Run&)>>(std::move(eval)), depth};
  }

  Expr constant(Value v) {
    return node({}, [v = std::move(v)](Run&, const Exprs&) { return v; });
  }

  Expr tuple(Exprs items) {
    return node(std::move(items), [](Run& run, const Exprs& e) {
      return run.meter.made(Value::tuple(values_of(run, e)));
    });
  }

  /// One expression, or several with commas: a tuple. In `for`, an `if` is not part of it.
  Expr parse_tuple(bool in_for = false) {
    Exprs items{in_for ? parse_operators(0) : parse_expression()};
    if (!at(",")) return items[0];
    while (take(",")) {
      if (at(TokenKind::kTagEnd) || at(TokenKind::kPrintEnd) || at(")")) break;
      items.push_back(in_for ? parse_operators(0) : parse_expression());
    }
    return tuple(std::move(items));
  }

  Expr parse_expression() {
    const Nesting nesting(*this);
    Expr value = parse_operators(0);
    while (take("if")) {
      ++branches_;
      const Expr condition = parse_operators(0);
      const Expr otherwise =
          take("else")
              ? parse_expression()
              : constant(Value::undefined(
                    "the inline if-expression evaluated to false and no else section was defined"));
      --branches_;
      value = node({value, condition, otherwise}, [](Run& run, const Exprs& e) {
        return truthy(e[1](run)) ? e[0](run) : e[2](run);
      });
    }
    return value;
  }

  /// The operator of that level that comes next, or "".
  std::string operator_at(int level) const {
    if (level == kCompareLevel && at("not") && before("in")) return "not in";
    for (const auto& [text, of] : kOperators) {
      if (of == level && at(text)) return std::string(text);
    }
    return "";
  }

  Expr parse_operators(int level) {
    if (level == kUnaryLevel) return parse_unary(true);
    if (level == kNotLevel && take("not")) {
      const Nesting nesting(*this);
      return negation(parse_operators(level));
    }
    Expr left = parse_operators(level + 1);
    std::string op;
    while (!(op = operator_at(level)).empty()) {
      if (take() == "not") take();
      left = node({left, parse_operators(level + 1)}, [op](Run& run, const Exprs& e) {
        const Value value = e[0](run);
        if (op == "and" || op == "or") return truthy(value) == (op == "or") ? value : e[1](run);
        return run.meter.made(binary(op, value, e[1](run), run.meter));
      });
      if (level == kCompareLevel && !operator_at(level).empty())
        fail_unsupported("a chain of comparisons");
    }
    return left;
  }

  Expr negation(Expr value) {
    return node({std::move(value)},
                [](Run& run, const Exprs& e) { return Value::boolean(!truthy(e[0](run))); });
  }

  Expr parse_unary(bool with_filter) {
    const Nesting nesting(*this);
    if (at("+")) fail_unsupported("the sign +");
    const bool negative = take("-");
    Expr e = negative ? parse_unary(false) : parse_primary();
    if (negative) {
      e = node({e}, [](Run& run, const Exprs& c) {
        return binary("-", Value::integer(0), c[0](run), run.meter);
      });
    }
    e = parse_postfix(std::move(e));
    while (with_filter && (at("|") || at("is"))) {
      e = at("|") ? parse_filters(std::move(e)) : parse_test(std::move(e));
    }
    return e;
  }

  Expr parse_primary() {
    const Nesting nesting(*this);
    if (at(TokenKind::kName)) {
      const std::string name = take();
      if (name == "true" || name == "True") return constant(Value::boolean(true));
      if (name == "false" || name == "False") return constant(Value::boolean(false));
      if (name == "none" || name == "None") return constant(Value::none());
      return node({}, [name](Run& run, const Exprs&) { return run.find(name); });
    }
    if (at(TokenKind::kString)) {
      std::string text;
      while (at(TokenKind::kString)) text += take();
      return constant(Value::string(std::move(text)));
    }
    if (at(TokenKind::kInteger)) return parse_integer();
    if (take("(")) {
      Expr e = at(")") ? tuple({}) : parse_tuple();
      expect(")");
      return e;
    }
    const bool is_dict = take("{");
    if (!is_dict) expect("[");
    Exprs items;
    while (!take(is_dict ? "}" : "]")) {
      items.push_back(parse_expression());
      if (is_dict) {
        expect(":");
        items.push_back(parse_expression());
      }
      if (!at(is_dict ? "}" : "]")) expect(",");
    }
    return node(std::move(items), [is_dict](Run& run, const Exprs& e) {
      Items values = values_of(run, e);
      return run.meter.made(is_dict ? dict_of(values, run.meter) : Value::list(std::move(values)));
    });
  }

  Expr parse_integer() {
    const std::string text = take();
    int64_t i = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), i).ec != std::errc())
      fail_unsupported("the integer " + text.substr(0, 40));
    return constant(Value::integer(i));
  }

  Expr parse_postfix(Expr e) {
    for (;;) {
      if (take(".")) {
        e = at(TokenKind::kInteger) ? item(e, parse_integer()) : parse_attribute(e);
      } else if (take("[")) {
        e = parse_subscript(std::move(e));
      } else if (at("(")) {
        e = apply(std::move(e), parse_arguments(), call_value);
      } else {
        return e;
      }
    }
  }

  Expr item(Expr object, Expr key) {
    return node({std::move(object), std::move(key)}, [](Run& run, const Exprs& e) {
      const Value value = e[0](run);
      return get_item(value, e[1](run), run.meter);
    });
  }

  Expr parse_attribute(Expr object) {
    const std::string name = expect(TokenKind::kName);
    if (!at("(")) {
      return node({std::move(object)},
                  [name](Run& run, const Exprs& e) { return get_attribute(e[0](run), name); });
    }
    return apply(std::move(object), parse_arguments(),
                 [name](Run& run, const Value& self, const Arguments& given) {
                   const Builtin* method = find_method(self, name);
                   return method ? call(*method, self, given, run.meter)
                                 : call_value(run, get_attribute(self, name), given);
                 });
  }

  Expr parse_subscript(Expr object) {
    Exprs parts{std::move(object), {}, {}, {}};
    size_t colons = 0;
    while (!at("]")) {
      if (at(",")) fail_unsupported("a subscript with commas");
      if (!take(":")) {
        if (parts[colons + 1].is_given()) unexpected();
        parts[colons + 1] = parse_expression();
      } else if (++colons > 2) {
        unexpected();
      }
    }
    if (colons == 0 && !parts[1].is_given()) unexpected();
    take();
    if (colons == 0) return item(parts[0], parts[1]);
    return node(std::move(parts), [](Run& run, const Exprs& e) {
      const Value value = e[0](run), start = e[1](run), stop = e[2](run);
      return run.meter.made(slice(value, {start, stop, e[3](run)}, run.meter));
    });
  }

  CallWith parse_arguments() {
    CallWith with;
    expect("(");
    while (!take(")")) {
      if (at("*") || at("**")) fail_unsupported("a call with * or **");
      if (at(TokenKind::kName) && before("=")) {
        with.names.push_back(take());
        take();
      } else if (!with.names.empty()) {
        syntax("a positional argument follows a named one");
      }
      with.values.push_back(parse_expression());
      if (!at(")")) expect(",");
    }
    return with;
  }

  /// `work(run, self, arguments)` as an expression.
  template <class Work>
  Expr apply(Expr self, CallWith with, Work work) {
    Exprs children{std::move(self)};
    children.insert(children.end(), with.values.begin(), with.values.end());
    return node(std::move(children), [names = with.names, work](Run& run, const Exprs& e) {
      const Value value = e[0](run);
      const size_t first_named = e.size() - names.size();
      Arguments given;
      for (size_t i = 1; i < first_named; ++i) given.positional.push_back(e[i](run));
      for (size_t i = first_named; i < e.size(); ++i) {
        given.named.emplace_back(names[i - first_named], e[i](run));
      }
      return work(run, value, given);
    });
  }

  static Value call_value(Run& run, const Value& function, const Arguments& given) {
    if (function.is(Kind::kCallable)) return run.meter.made(function.function()(given));
    if (function.is(Kind::kUndefined)) fail_runtime(function.undefined_message());
    fail_runtime("'" + type_name(function) + "' object is not callable");
  }

  Expr parse_filters(Expr e) {
    while (take("|")) e = parse_builtin("filter", find_filter, std::move(e));
    return e;
  }

  /// A filter or test of `input`. One that is not known is refused when it is reached, if it need
  /// not be.
  Expr parse_builtin(const char* what, const Builtin* (*find)(std::string_view), Expr input) {
    const std::string name = expect(TokenKind::kName);
    const std::string refused = std::string("the ") + what + " '" + name + "'";
    const Builtin* builtin = find(name);
    if (!builtin && branches_ == 0) fail_unsupported(refused);
    const auto at_one_of = [&](auto... texts) { return (at(texts) || ...); };
    CallWith with;
    if (at("(")) {
      with = parse_arguments();
    } else if (find == find_test &&
               ((at(TokenKind::kName) &&
                 !at_one_of("else", "or", "and", "if", "in", "not", "is")) ||
                at_one_of(TokenKind::kString, TokenKind::kInteger) || at_one_of("[", "{"))) {
      with.values.push_back(parse_postfix(parse_primary()));
    }
    return apply(std::move(input), std::move(with),
                 [builtin, refused](Run& run, const Value& self, const Arguments& given) {
                   if (!builtin) fail_unsupported(refused);
                   return call(*builtin, self, given, run.meter);
                 });
  }

  Expr parse_test(Expr e) {
    expect("is");
    const bool negated = take("not");
    e = parse_builtin("test", find_test, std::move(e));
    if (at("is")) syntax("tests can't be chained");
    return negated ? negation(std::move(e)) : e;
  }

 private:
  static Items values_of(Run& run, const Exprs& expressions) {
    Items items;
    for (const Expr& expression : expressions) items.push_back(expression(run));
    return items;
  }

  int nesting_ = 0;
};

}  // namespace bicached::jinja
