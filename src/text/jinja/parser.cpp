// Tokens into a tree: statements first, expressions below, by Jinja's precedence.
#include <algorithm>
#include <charconv>

#include "text/jinja/lexer.h"
#include "text/jinja/runtime.h"

namespace bicached::jinja {
namespace {

constexpr int kMaxNesting = 100;  // of brackets, prefixes and blocks in the source
constexpr int kMaxDepth = 300;    // of an expression's tree

class Parser : TokenReader {
 public:
  explicit Parser(std::string_view source) : TokenReader(tokenize(source)) {}

  Body run() { return parse_body({}); }

 private:
  struct Nesting {
    explicit Nesting(Parser& p) : parser(p) {
      if (++parser.nesting_ > kMaxNesting) fail(Failure::kLimit, "the template is nested too deep");
    }
    ~Nesting() { --parser.nesting_; }
    Parser& parser;
  };

  // --- statements

  /// Until a tag whose name is in `ends` (left unread behind its TagBegin) or the template's end.
  Body parse_body(std::initializer_list<std::string_view> ends) {
    const Nesting nesting(*this);
    Body body;
    for (;;) {
      if (at(TokenKind::kEnd)) {
        if (ends.size() == 0) return body;
        syntax("Unexpected end of template. Jinja was looking for the tag '" +
               std::string(*ends.begin()) + "'");
      }
      Stmt s;
      if (at(TokenKind::kText)) {
        s.text = take();
      } else if (at(TokenKind::kPrintBegin)) {
        take();
        s.kind = StmtKind::kPrint;
        s.value = parse_tuple();
        expect(TokenKind::kPrintEnd);
      } else {
        take();
        if (!at(TokenKind::kName)) unexpected();
        if (std::find(ends.begin(), ends.end(), now().text) != ends.end()) return body;
        s = parse_tag();
      }
      body.push_back(std::move(s));
    }
  }

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
    Stmt s;
    if (tag == "filter") {
      s.kind = StmtKind::kFilterBlock;
      s.value = parse_filters(parse_filter(nullptr));
      s.body = parse_block("endfilter");
    } else if (tag == "generation") {
      s.kind = StmtKind::kScope;
      s.body = parse_block("endgeneration");
    } else if (tag == "break" || tag == "continue") {
      if (loops_ == 0) syntax("'" + tag + "' outside a loop");
      s.kind = tag == "break" ? StmtKind::kBreak : StmtKind::kContinue;
      expect(TokenKind::kTagEnd);
    } else {
      fail_unsupported("the tag '" + tag + "'");
    }
    return s;
  }

  Stmt parse_if() {
    Stmt first;
    Stmt* s = &first;
    ++branches_;
    for (int num_tests = 1;; ++num_tests) {
      if (num_tests > kMaxNesting) fail(Failure::kLimit, "an if of the template has too many elif");
      s->kind = StmtKind::kIf;
      s->value = parse_tuple();
      expect(TokenKind::kTagEnd);
      s->body = parse_body({"endif", "elif", "else"});
      const std::string tag = take();
      if (tag == "else") s->otherwise = parse_block("endif");
      if (tag == "endif") expect(TokenKind::kTagEnd);
      if (tag != "elif") break;
      s->otherwise.emplace_back();
      s = &s->otherwise.back();
    }
    --branches_;
    return first;
  }

  Stmt parse_for() {
    Stmt s;
    s.kind = StmtKind::kFor;
    s.target = parse_targets();
    expect("in");
    s.value = parse_tuple(true);
    if (take("if")) s.condition = parse_expression();
    if (at("recursive")) fail_unsupported("a recursive loop");
    expect(TokenKind::kTagEnd);
    ++loops_;
    s.body = parse_body({"endfor", "else"});
    --loops_;
    if (take("else")) {
      s.otherwise = parse_block("endfor");
    } else {
      take();
      expect(TokenKind::kTagEnd);
    }
    return s;
  }

  ExprPtr parse_target() {
    std::string name = expect(TokenKind::kName);
    for (const char* constant : {"true", "false", "none", "True", "False", "None"}) {
      if (name == constant) syntax("can't assign to '" + name + "'");
    }
    return node(ExprKind::kName, std::move(name));
  }

  ExprPtr parse_targets() {
    const bool bracket = take("(");
    ExprPtr targets = parse_target();
    if (at(",")) targets = node(ExprKind::kTuple, "", std::move(targets));
    while (take(",")) {
      if (at("(")) fail_unsupported("unpacking into nested targets");
      if (!at(")") && !at("in")) targets->children.push_back(parse_target());
    }
    if (bracket) expect(")");
    return targets;
  }

  Stmt parse_set() {
    Stmt s;
    s.target = parse_target();
    if (take("."))
      s.target = node(ExprKind::kAttribute, expect(TokenKind::kName), std::move(s.target));
    if (at(",")) fail_unsupported("set with several names");
    if (at("|")) fail_unsupported("a set block with a filter");
    if (take("=")) {
      s.kind = StmtKind::kSet;
      s.value = parse_tuple();
      expect(TokenKind::kTagEnd);
    } else {
      s.kind = StmtKind::kSetBlock;
      s.body = parse_block("endset");
    }
    return s;
  }

  Stmt parse_macro() {
    Stmt s;
    s.kind = StmtKind::kMacro;
    s.text = expect(TokenKind::kName);
    expect("(");
    while (!take(")")) {
      std::string name = expect(TokenKind::kName);
      s.parameters.emplace_back(std::move(name), take("=") ? parse_expression() : nullptr);
      if (!at(")")) expect(",");
    }
    const int loops = std::exchange(loops_, 0);
    s.body = parse_block("endmacro");
    loops_ = loops;
    return s;
  }

  // --- expressions

  ExprPtr finish(ExprPtr e) {
    for (const auto& child : e->children)
      if (child) e->depth = std::max(e->depth, child->depth + 1);
    for (const auto& [name, child] : e->named) e->depth = std::max(e->depth, child->depth + 1);
    if (e->depth > kMaxDepth)
      fail(Failure::kLimit, "an expression of the template is nested too deep");
    return e;
  }

  template <class... Children>
  ExprPtr node(ExprKind kind, std::string name = "", Children... children) {
    auto e = std::make_unique<Expr>();
    e->kind = kind;
    e->name = std::move(name);
    (e->children.push_back(std::move(children)), ...);
    return finish(std::move(e));
  }

  ExprPtr constant(Value v) {
    ExprPtr e = node(ExprKind::kConstant);
    e->constant = std::move(v);
    return e;
  }

  /// One expression, or several with commas: a tuple. In `for`, an `if` is not part of it.
  ExprPtr parse_tuple(bool in_for = false) {
    ExprPtr first = in_for ? parse_operators(0) : parse_expression();
    if (!at(",")) return first;
    ExprPtr tuple = node(ExprKind::kTuple, "", std::move(first));
    while (take(",")) {
      if (at(TokenKind::kTagEnd) || at(TokenKind::kPrintEnd) || at(")")) break;
      tuple->children.push_back(in_for ? parse_operators(0) : parse_expression());
    }
    return finish(std::move(tuple));
  }

  ExprPtr parse_expression() {
    const Nesting nesting(*this);
    ExprPtr value = parse_operators(0);
    while (take("if")) {
      ++branches_;
      ExprPtr condition = parse_operators(0);
      ExprPtr otherwise = take("else") ? parse_expression() : nullptr;
      --branches_;
      value = node(ExprKind::kConditional, "", std::move(value), std::move(condition),
                   std::move(otherwise));
    }
    return value;
  }

  /// Binary operators, those that bind least first. Between `and` and `+` stand `not` and
  /// comparisons.
  ExprPtr parse_operators(size_t level) {
    constexpr std::array<std::array<std::string_view, 2>, 5> kLevels = {
        {{"or", "or"}, {"and", "and"}, {"+", "-"}, {"~", "~"}, {"*", "%"}}};
    const auto operand = [&] {
      return level == 1                    ? parse_not()
             : level + 1 == kLevels.size() ? parse_unary(true)
                                           : parse_operators(level + 1);
    };
    ExprPtr left = operand();
    while (at(kLevels[level][0]) || at(kLevels[level][1])) {
      std::string op = take();
      left = node(ExprKind::kBinary, std::move(op), std::move(left), operand());
    }
    if (at("/") || at("//") || at("**")) fail_unsupported("the operator " + now().text);
    return left;
  }

  ExprPtr parse_not() {
    const Nesting nesting(*this);
    return take("not") ? node(ExprKind::kNot, "", parse_not()) : parse_compare();
  }

  ExprPtr parse_compare() {
    ExprPtr e = parse_operators(2);
    for (;;) {
      std::string op;
      for (const char* known : {"==", "!=", "<", ">", "<=", ">=", "in"})
        if (at(known)) op = known;
      if (at("not") && before("in")) op = "not " + (take(), now().text);
      if (op.empty()) return finish(std::move(e));
      take();
      if (e->kind != ExprKind::kCompare || e->ops.empty() || e->name == "(")
        e = node(ExprKind::kCompare, "", std::move(e));
      e->ops.push_back(op);
      e->children.push_back(parse_operators(2));
    }
  }

  ExprPtr parse_unary(bool with_filter) {
    const Nesting nesting(*this);
    if (at("+")) fail_unsupported("the sign +");
    ExprPtr e = take("-") ? node(ExprKind::kNegative, "", parse_unary(false)) : parse_primary();
    e = parse_postfix(std::move(e));
    return with_filter ? parse_filters_and_tests(std::move(e)) : std::move(e);
  }

  ExprPtr parse_primary() {
    const Nesting nesting(*this);
    if (at(TokenKind::kName)) {
      std::string name = take();
      if (name == "true" || name == "True") return constant(Value::boolean(true));
      if (name == "false" || name == "False") return constant(Value::boolean(false));
      if (name == "none" || name == "None") return constant(Value::none());
      return node(ExprKind::kName, std::move(name));
    }
    if (at(TokenKind::kString)) {
      std::string text;
      while (at(TokenKind::kString)) text += take();
      return constant(Value::string(std::move(text)));
    }
    if (at(TokenKind::kInteger)) return parse_integer();
    if (take("(")) {
      ExprPtr e = at(")") ? node(ExprKind::kTuple) : parse_tuple();
      expect(")");
      if (e->kind == ExprKind::kCompare) e->name = "(";  // not part of a comparison around it
      return e;
    }
    const bool is_dict = take("{");
    if (!is_dict) expect("[");
    ExprPtr e = node(is_dict ? ExprKind::kDict : ExprKind::kList);
    while (!take(is_dict ? "}" : "]")) {
      e->children.push_back(parse_expression());
      if (is_dict) {
        expect(":");
        e->children.push_back(parse_expression());
      }
      if (!at(is_dict ? "}" : "]")) expect(",");
    }
    return finish(std::move(e));
  }

  ExprPtr parse_integer() {
    const std::string text = take();
    int64_t i = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), i).ec != std::errc())
      fail_unsupported("the integer " + text.substr(0, 40));
    return constant(Value::integer(i));
  }

  ExprPtr parse_postfix(ExprPtr e) {
    for (;;) {
      if (take(".")) {
        e = at(TokenKind::kInteger)
                ? node(ExprKind::kItem, "", std::move(e), parse_integer())
                : node(ExprKind::kAttribute, expect(TokenKind::kName), std::move(e));
      } else if (take("[")) {
        e = parse_subscript(std::move(e));
      } else if (at("(")) {
        e = parse_arguments(node(ExprKind::kCall, "", std::move(e)));
      } else {
        return e;
      }
    }
  }

  ExprPtr parse_subscript(ExprPtr object) {
    ExprPtr parts[3];
    int colons = 0;
    while (!at("]")) {
      if (at(",")) fail_unsupported("a subscript with commas");
      if (!take(":")) {
        if (parts[colons]) unexpected();
        parts[colons] = parse_expression();
      } else if (++colons > 2) {
        unexpected();
      }
    }
    if (colons == 0 && !parts[0]) unexpected();
    take();
    if (colons == 0) return node(ExprKind::kItem, "", std::move(object), std::move(parts[0]));
    return node(ExprKind::kSlice, "", std::move(object), std::move(parts[0]), std::move(parts[1]),
                std::move(parts[2]));
  }

  ExprPtr parse_arguments(ExprPtr call) {
    expect("(");
    while (!take(")")) {
      if (at("*") || at("**")) fail_unsupported("a call with * or **");
      if (at(TokenKind::kName) && before("=")) {
        std::string name = take();
        take();
        call->named.emplace_back(std::move(name), parse_expression());
      } else {
        if (!call->named.empty()) syntax("a positional argument follows a named one");
        call->children.push_back(parse_expression());
      }
      if (!at(")")) expect(",");
    }
    return finish(std::move(call));
  }

  ExprPtr parse_filters_and_tests(ExprPtr e) {
    for (;;) {
      if (at("|")) {
        e = parse_filters(std::move(e));
      } else if (take("is")) {
        e = parse_test(std::move(e));
      } else if (at("(")) {
        e = parse_arguments(node(ExprKind::kCall, "", std::move(e)));
      } else {
        return e;
      }
    }
  }

  ExprPtr parse_filters(ExprPtr e) {
    while (take("|")) e = parse_filter(std::move(e));
    return e;
  }

  ExprPtr parse_filter(ExprPtr input) {
    ExprPtr filter = node(ExprKind::kFilter, expect(TokenKind::kName), std::move(input));
    if (!find_filter(filter->name) && branches_ == 0)
      fail_unsupported("the filter '" + filter->name + "'");
    return at("(") ? parse_arguments(std::move(filter)) : std::move(filter);
  }

  ExprPtr parse_test(ExprPtr e) {
    const bool negated = take("not");
    ExprPtr test = node(ExprKind::kTest, expect(TokenKind::kName), std::move(e));
    if (!find_test(test->name) && branches_ == 0) fail_unsupported("the test '" + test->name + "'");
    if (at("is")) syntax("tests can't be chained");
    const auto at_one_of = [&](auto... texts) { return (at(texts) || ...); };
    if (at("(")) {
      test = parse_arguments(std::move(test));
    } else if ((at(TokenKind::kName) && !at_one_of("else", "or", "and", "if", "in", "not")) ||
               at(TokenKind::kString) || at(TokenKind::kInteger) || at_one_of("[", "{")) {
      test->children.push_back(parse_postfix(parse_primary()));
    }
    test = finish(std::move(test));
    return negated ? node(ExprKind::kNot, "", std::move(test)) : std::move(test);
  }

  int nesting_ = 0;
  int loops_ = 0;
  int branches_ = 0;  // inside these an unknown filter or test is an error only when it is reached
};

}  // namespace

Body parse(std::string_view source) { return Parser(source).run(); }

}  // namespace bicached::jinja
