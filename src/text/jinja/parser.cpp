#include <algorithm>
#include <charconv>

#include "text/jinja/lexer.h"
#include "text/jinja/syntax.h"

namespace bicached::jinja {
namespace {

constexpr int kMaxNesting = 100;  // of brackets, prefixes and blocks in the source
constexpr int kMaxDepth = 300;    // of an expression's tree

ExprPtr make(ExprKind kind, std::string name = "") {
  auto e = std::make_unique<Expr>();
  e->kind = kind;
  e->name = std::move(name);
  return e;
}

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Body run() {
    Body body = parse_body({});
    return body;
  }

 private:
  struct Nesting {
    explicit Nesting(Parser& p) : parser(p) {
      if (++parser.nesting_ > kMaxNesting) fail(Failure::kLimit, "the template is nested too deep");
    }
    ~Nesting() { --parser.nesting_; }
    Parser& parser;
  };

  const Token& now() const { return tokens_[pos_]; }
  const Token& ahead(size_t n = 1) const { return tokens_[std::min(pos_ + n, tokens_.size() - 1)]; }
  Token take() {
    if (now().kind == TokenKind::kTagBegin || now().kind == TokenKind::kPrintBegin)
      line_ = now().line;
    Token t = now();
    if (pos_ + 1 < tokens_.size()) ++pos_;
    return t;
  }
  bool at_op(std::string_view op) const {
    return now().kind == TokenKind::kOperator && now().text == op;
  }
  bool at_name(std::string_view name) const {
    return now().kind == TokenKind::kName && now().text == name;
  }
  bool take_op(std::string_view op) { return at_op(op) ? (take(), true) : false; }
  bool take_name(std::string_view name) { return at_name(name) ? (take(), true) : false; }
  [[noreturn]] void syntax(const std::string& why) const {
    fail(Failure::kSyntax, why + " (line " + std::to_string(line_) + ")");
  }
  [[noreturn]] void unexpected() const {
    switch (now().kind) {
      case TokenKind::kPrintEnd: syntax("unexpected 'end of print statement'");
      case TokenKind::kTagEnd: syntax("unexpected 'end of statement block'");
      case TokenKind::kEnd: syntax("unexpected end of template");
      default: syntax("unexpected '" + now().text + "'");
    }
  }
  void expect_op(std::string_view op) {
    if (!take_op(op)) unexpected();
  }
  std::string expect_name() {
    if (now().kind != TokenKind::kName) unexpected();
    return take().text;
  }
  void expect(TokenKind kind) {
    if (now().kind != kind) unexpected();
    take();
  }

  ExprPtr finish(ExprPtr e) {
    for (const auto& child : e->children)
      if (child) e->depth = std::max(e->depth, child->depth + 1);
    for (const auto& [name, child] : e->named) e->depth = std::max(e->depth, child->depth + 1);
    if (e->depth > kMaxDepth)
      fail(Failure::kLimit, "an expression of the template is nested too deep");
    return e;
  }
  ExprPtr node(ExprKind kind, std::string name, ExprPtr a, ExprPtr b = nullptr) {
    ExprPtr e = make(kind, std::move(name));
    e->children.push_back(std::move(a));
    if (b) e->children.push_back(std::move(b));
    return finish(std::move(e));
  }

  // --- statements ---

  /// Until a tag whose name is in `ends` (left unread behind its TagBegin) or the template's end.
  Body parse_body(std::initializer_list<std::string_view> ends) {
    const Nesting nesting(*this);
    Body body;
    for (;;) {
      if (now().kind == TokenKind::kEnd) {
        if (ends.size() > 0) {
          syntax("Unexpected end of template. Jinja was looking for the tag '" +
                 std::string(*ends.begin()) + "'");
        }
        return body;
      }
      if (now().kind == TokenKind::kText) {
        auto s = std::make_unique<Stmt>();
        s->text = take().text;
        body.push_back(std::move(s));
      } else if (now().kind == TokenKind::kPrintBegin) {
        take();
        auto s = std::make_unique<Stmt>();
        s->kind = StmtKind::kPrint;
        s->value = parse_tuple();
        expect(TokenKind::kPrintEnd);
        body.push_back(std::move(s));
      } else {
        take();
        if (now().kind != TokenKind::kName) unexpected();
        if (std::find(ends.begin(), ends.end(), now().text) != ends.end()) return body;
        body.push_back(parse_tag());
      }
    }
  }

  std::unique_ptr<Stmt> parse_tag() {
    const std::string tag = take().text;
    auto s = std::make_unique<Stmt>();
    if (tag == "if") return parse_if(std::move(s));
    if (tag == "for") return parse_for(std::move(s));
    if (tag == "set") return parse_set(std::move(s));
    if (tag == "macro") return parse_macro(std::move(s));
    if (tag == "with") return parse_with(std::move(s));
    if (tag == "filter") {
      s->kind = StmtKind::kFilterBlock;
      s->value = parse_filter_chain(nullptr, true);
      expect(TokenKind::kTagEnd);
      return parse_block(std::move(s), "endfilter");
    }
    if (tag == "generation") {
      s->kind = StmtKind::kScope;
      expect(TokenKind::kTagEnd);
      return parse_block(std::move(s), "endgeneration");
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) syntax("'" + tag + "' outside a loop");
      s->kind = tag == "break" ? StmtKind::kBreak : StmtKind::kContinue;
      expect(TokenKind::kTagEnd);
      return s;
    }
    for (const std::string_view known :
         {"include", "import", "from", "extends", "block", "call", "autoescape", "print"}) {
      if (tag == known) fail_unsupported("the tag '" + tag + "'");
    }
    syntax("Encountered unknown tag '" + tag + "'.");
  }

  std::unique_ptr<Stmt> parse_block(std::unique_ptr<Stmt> s, std::string_view end) {
    s->body = parse_body({end});
    take();
    expect(TokenKind::kTagEnd);
    return s;
  }

  std::unique_ptr<Stmt> parse_if(std::unique_ptr<Stmt> s) {
    s->kind = StmtKind::kIf;
    ExprPtr condition = parse_tuple();
    for (;;) {
      expect(TokenKind::kTagEnd);
      const bool is_else = !condition;
      Body body = is_else ? parse_body({"endif"}) : parse_body({"endif", "elif", "else"});
      s->branches.emplace_back(std::move(condition), std::move(body));
      const std::string tag = take().text;
      if (tag == "endif") break;
      condition = tag == "elif" ? parse_tuple() : nullptr;
    }
    expect(TokenKind::kTagEnd);
    return s;
  }

  std::unique_ptr<Stmt> parse_for(std::unique_ptr<Stmt> s) {
    s->kind = StmtKind::kFor;
    s->target = parse_target(false);
    if (!take_name("in")) unexpected();
    s->value = parse_tuple(true);
    if (take_name("if")) s->condition = parse_expression();
    s->recursive = take_name("recursive");
    expect(TokenKind::kTagEnd);
    ++loops_;
    s->body = parse_body({"endfor", "else"});
    --loops_;
    if (take().text == "else") {
      expect(TokenKind::kTagEnd);
      s->otherwise = parse_body({"endfor"});
      take();
    }
    expect(TokenKind::kTagEnd);
    return s;
  }

  ExprPtr parse_target_name(bool with_namespace) {
    const std::string name = expect_name();
    if (name == "true" || name == "false" || name == "none" || name == "True" || name == "False" ||
        name == "None") {
      syntax("can't assign to '" + name + "'");
    }
    ExprPtr e = make(ExprKind::kName, name);
    if (with_namespace && take_op("."))
      return node(ExprKind::kAttribute, expect_name(), std::move(e));
    return e;
  }

  ExprPtr parse_target(bool with_namespace) {
    const bool bracket = take_op("(");
    ExprPtr first = parse_target_name(with_namespace);
    if (!at_op(",")) {
      if (bracket) expect_op(")");
      return first;
    }
    ExprPtr tuple = make(ExprKind::kTuple);
    tuple->children.push_back(std::move(first));
    while (take_op(",")) {
      if (at_op(")") || at_op("=") || at_name("in")) break;
      if (at_op("(")) fail_unsupported("unpacking into nested targets");
      tuple->children.push_back(parse_target_name(false));
    }
    if (bracket) expect_op(")");
    return finish(std::move(tuple));
  }

  std::unique_ptr<Stmt> parse_set(std::unique_ptr<Stmt> s) {
    s->target = parse_target(true);
    if (take_op("=")) {
      s->kind = StmtKind::kSet;
      s->value = parse_tuple();
      expect(TokenKind::kTagEnd);
      return s;
    }
    s->kind = StmtKind::kSetBlock;
    if (at_op("|")) s->value = parse_filter_chain(nullptr, false);
    expect(TokenKind::kTagEnd);
    return parse_block(std::move(s), "endset");
  }

  std::unique_ptr<Stmt> parse_macro(std::unique_ptr<Stmt> s) {
    s->kind = StmtKind::kMacro;
    s->text = expect_name();
    expect_op("(");
    while (!at_op(")")) {
      std::string name = expect_name();
      ExprPtr otherwise = take_op("=") ? parse_expression() : nullptr;
      s->bindings.emplace_back(std::move(name), std::move(otherwise));
      if (!at_op(")")) expect_op(",");
    }
    take();
    expect(TokenKind::kTagEnd);
    const int loops = std::exchange(loops_, 0);
    s = parse_block(std::move(s), "endmacro");
    loops_ = loops;
    return s;
  }

  std::unique_ptr<Stmt> parse_with(std::unique_ptr<Stmt> s) {
    s->kind = StmtKind::kWith;
    while (now().kind != TokenKind::kTagEnd) {
      std::string name = expect_name();
      expect_op("=");
      s->bindings.emplace_back(std::move(name), parse_expression());
      if (now().kind != TokenKind::kTagEnd) expect_op(",");
    }
    take();
    return parse_block(std::move(s), "endwith");
  }

  // --- expressions ---

  /// One expression, or several with commas: a tuple. In `for`, an `if` is not part of it.
  ExprPtr parse_tuple(bool in_for = false) {
    const auto one = [&] { return in_for ? parse_or() : parse_expression(); };
    ExprPtr first = one();
    if (!at_op(",")) return first;
    ExprPtr tuple = make(ExprKind::kTuple);
    tuple->children.push_back(std::move(first));
    while (take_op(",")) {
      if (now().kind == TokenKind::kTagEnd || now().kind == TokenKind::kPrintEnd || at_op(")") ||
          (in_for && at_name("recursive")))
        break;
      tuple->children.push_back(one());
    }
    return finish(std::move(tuple));
  }

  ExprPtr parse_expression() {
    const Nesting nesting(*this);
    ExprPtr value = parse_or();
    while (take_name("if")) {
      ExprPtr e = make(ExprKind::kConditional);
      e->children.push_back(std::move(value));
      e->children.push_back(parse_or());
      e->children.push_back(take_name("else") ? parse_expression() : nullptr);
      value = finish(std::move(e));
    }
    return value;
  }

  ExprPtr parse_or() {
    ExprPtr left = parse_and();
    while (take_name("or")) {
      ExprPtr right = parse_and();
      left = node(ExprKind::kOr, "", std::move(left), std::move(right));
    }
    return left;
  }

  ExprPtr parse_and() {
    ExprPtr left = parse_not();
    while (take_name("and")) {
      ExprPtr right = parse_not();
      left = node(ExprKind::kAnd, "", std::move(left), std::move(right));
    }
    return left;
  }

  ExprPtr parse_not() {
    const Nesting nesting(*this);
    if (take_name("not")) return node(ExprKind::kNot, "", parse_not());
    return parse_compare();
  }

  ExprPtr parse_compare() {
    ExprPtr first = parse_sum();
    ExprPtr e;
    for (;;) {
      std::string op;
      for (const std::string_view known : {"==", "!=", "<", ">", "<=", ">="})
        if (at_op(known)) op = known;
      if (at_name("in")) op = "in";
      if (at_name("not") && ahead().kind == TokenKind::kName && ahead().text == "in") {
        take();
        op = "not in";
      }
      if (op.empty()) return e ? finish(std::move(e)) : std::move(first);
      take();
      if (!e) {
        e = make(ExprKind::kCompare);
        e->children.push_back(std::move(first));
      }
      e->ops.push_back(op);
      e->children.push_back(parse_sum());
    }
  }

  ExprPtr parse_sum() {
    ExprPtr left = parse_concat();
    while (at_op("+") || at_op("-")) {
      std::string op = take().text;
      ExprPtr right = parse_concat();
      left = node(ExprKind::kBinary, std::move(op), std::move(left), std::move(right));
    }
    return left;
  }

  ExprPtr parse_concat() {
    ExprPtr first = parse_product();
    if (!at_op("~")) return first;
    ExprPtr e = make(ExprKind::kConcat);
    e->children.push_back(std::move(first));
    while (take_op("~")) e->children.push_back(parse_product());
    return finish(std::move(e));
  }

  ExprPtr parse_product() {
    ExprPtr left = parse_power();
    while (at_op("*") || at_op("/") || at_op("//") || at_op("%")) {
      std::string op = take().text;
      ExprPtr right = parse_power();
      left = node(ExprKind::kBinary, std::move(op), std::move(left), std::move(right));
    }
    return left;
  }

  ExprPtr parse_power() {
    ExprPtr left = parse_unary(true);
    while (take_op("**")) {
      ExprPtr right = parse_unary(true);
      left = node(ExprKind::kBinary, "**", std::move(left), std::move(right));
    }
    return left;
  }

  ExprPtr parse_unary(bool with_filter) {
    const Nesting nesting(*this);
    ExprPtr e;
    if (at_op("-") || at_op("+")) {
      std::string op = take().text;
      e = node(ExprKind::kUnary, std::move(op), parse_unary(false));
    } else {
      e = parse_primary();
    }
    e = parse_postfix(std::move(e));
    return with_filter ? parse_filters_and_tests(std::move(e)) : std::move(e);
  }

  ExprPtr constant(Value v) {
    ExprPtr e = make(ExprKind::kConstant);
    e->constant = std::move(v);
    return e;
  }

  ExprPtr parse_primary() {
    const Nesting nesting(*this);
    switch (now().kind) {
      case TokenKind::kName: {
        const std::string name = take().text;
        if (name == "true" || name == "True") return constant(Value::boolean(true));
        if (name == "false" || name == "False") return constant(Value::boolean(false));
        if (name == "none" || name == "None") return constant(Value::none());
        return make(ExprKind::kName, name);
      }
      case TokenKind::kString: {
        std::string text;
        while (now().kind == TokenKind::kString) text += take().text;
        return constant(Value::string(std::move(text)));
      }
      case TokenKind::kInteger:
      case TokenKind::kFloat: return constant(number(take()));
      case TokenKind::kOperator:
        if (take_op("(")) return parse_parentheses();
        if (take_op("[")) {
          ExprPtr list = make(ExprKind::kList);
          while (!take_op("]")) {
            list->children.push_back(parse_expression());
            if (!at_op("]")) expect_op(",");
          }
          return finish(std::move(list));
        }
        if (take_op("{")) return parse_dict();
        unexpected();
      default: unexpected();
    }
  }

  Value number(const Token& token) {
    if (token.kind == TokenKind::kFloat) {
      double d = 0;
      std::from_chars(token.text.data(), token.text.data() + token.text.size(), d);
      return Value::number(d);
    }
    int64_t i = 0;
    const auto result =
        std::from_chars(token.text.data(), token.text.data() + token.text.size(), i);
    if (result.ec != std::errc()) fail_unsupported("the integer " + token.text.substr(0, 40));
    return Value::integer(i);
  }

  ExprPtr parse_parentheses() {
    if (take_op(")")) return make(ExprKind::kTuple);
    ExprPtr e = parse_tuple();
    expect_op(")");
    return e;
  }

  ExprPtr parse_dict() {
    ExprPtr dict = make(ExprKind::kDict);
    while (!take_op("}")) {
      dict->children.push_back(parse_expression());
      expect_op(":");
      dict->children.push_back(parse_expression());
      if (!at_op("}")) expect_op(",");
    }
    return finish(std::move(dict));
  }

  ExprPtr parse_postfix(ExprPtr e) {
    for (;;) {
      if (take_op(".")) {
        if (now().kind == TokenKind::kInteger) {
          e = node(ExprKind::kItem, "", std::move(e), constant(number(take())));
        } else {
          e = node(ExprKind::kAttribute, expect_name(), std::move(e));
        }
      } else if (take_op("[")) {
        e = parse_subscript(std::move(e));
      } else if (at_op("(")) {
        ExprPtr call = make(ExprKind::kCall);
        call->children.push_back(std::move(e));
        parse_arguments(*call);
        e = finish(std::move(call));
      } else {
        return e;
      }
    }
  }

  ExprPtr parse_subscript(ExprPtr object) {
    ExprPtr e = make(ExprKind::kItem);
    e->children.push_back(std::move(object));
    ExprPtr first = at_op(":") ? nullptr : parse_expression();
    if (!at_op(":")) {
      if (at_op(",")) fail_unsupported("a subscript with commas");
      e->children.push_back(std::move(first));
      expect_op("]");
      return finish(std::move(e));
    }
    e->kind = ExprKind::kSlice;
    e->children.push_back(std::move(first));
    for (int i = 0; i < 2; ++i) {
      const bool more = take_op(":");
      e->children.push_back(more && !at_op(":") && !at_op("]") ? parse_expression() : nullptr);
    }
    expect_op("]");
    return finish(std::move(e));
  }

  void parse_arguments(Expr& call) {
    expect_op("(");
    while (!take_op(")")) {
      if (at_op("*") || at_op("**")) fail_unsupported("a call with * or **");
      if (now().kind == TokenKind::kName && ahead().kind == TokenKind::kOperator &&
          ahead().text == "=") {
        std::string name = take().text;
        take();
        call.named.emplace_back(std::move(name), parse_expression());
      } else {
        if (!call.named.empty()) syntax("a positional argument follows a named one");
        call.children.push_back(parse_expression());
      }
      if (!at_op(")")) expect_op(",");
    }
  }

  ExprPtr parse_filters_and_tests(ExprPtr e) {
    for (;;) {
      if (at_op("|")) {
        e = parse_filter_chain(std::move(e), false);
      } else if (take_name("is")) {
        e = parse_test(std::move(e));
      } else if (at_op("(")) {
        ExprPtr call = make(ExprKind::kCall);
        call->children.push_back(std::move(e));
        parse_arguments(*call);
        e = finish(std::move(call));
      } else {
        return e;
      }
    }
  }

  /// `| a | b(...)`; `inline_first`: the first filter comes without its bar (filter blocks).
  ExprPtr parse_filter_chain(ExprPtr e, bool inline_first) {
    while (inline_first || at_op("|")) {
      if (!inline_first) take();
      inline_first = false;
      ExprPtr filter = make(ExprKind::kFilter, expect_name());
      if (!is_known_filter(filter->name)) syntax("No filter named '" + filter->name + "'.");
      filter->children.push_back(std::move(e));
      if (at_op("(")) parse_arguments(*filter);
      e = finish(std::move(filter));
    }
    return e;
  }

  ExprPtr parse_test(ExprPtr e) {
    const bool negated = take_name("not");
    ExprPtr test = make(ExprKind::kTest, expect_name());
    if (!is_known_test(test->name)) syntax("No test named '" + test->name + "'.");
    test->children.push_back(std::move(e));
    const TokenKind k = now().kind;
    if (at_op("(")) {
      parse_arguments(*test);
    } else if ((k == TokenKind::kName && !at_name("else") && !at_name("or") && !at_name("and") &&
                !at_name("if")) ||
               k == TokenKind::kString || k == TokenKind::kInteger || k == TokenKind::kFloat ||
               at_op("[") || at_op("{")) {
      if (at_name("is")) syntax("tests can't be chained");
      if (!at_name("in") && !at_name("not") && !at_name("recursive")) {
        test->children.push_back(parse_postfix(parse_primary()));
      }
    }
    test = finish(std::move(test));
    return negated ? node(ExprKind::kNot, "", std::move(test)) : std::move(test);
  }

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int nesting_ = 0;
  int loops_ = 0;
  int line_ = 1;
};

}  // namespace

Body parse(std::string_view source) { return Parser(source).run(); }

}  // namespace bicached::jinja
