#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/value.h"

namespace bicached::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ExprKind {
  kConstant,
  kName,
  kList,
  kTuple,
  kDict,       // children: items; kDict: key, value, key, value...
  kAttribute,  // child 0 . name
  kItem,       // child 0 [child 1]
  kSlice,      // child 0 [child 1 : child 2 : child 3], each may be null
  kCall,       // child 0 (arguments)
  kFilter,     // child 0 | name(arguments)
  kTest,       // child 0 is name(arguments)
  kUnary,      // op child 0
  kBinary,     // child 0 op child 1
  kCompare,    // child 0 ops[0] child 1 ops[1] child 2 ...
  kConcat,     // children joined as text
  kAnd,
  kOr,
  kNot,
  kConditional  // child 0 if child 1 else child 2 (null: undefined)
};

struct Expr {
  ExprKind kind = ExprKind::kConstant;
  int depth = 1;  // of the tree: evaluation recurses this deep
  Value constant;
  std::string name;               // names, attributes, filters, tests, operators
  std::vector<ExprPtr> children;  // positional arguments follow child 0
  std::vector<std::pair<std::string, ExprPtr>> named;
  std::vector<std::string> ops;
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

enum class StmtKind {
  kText,
  kPrint,
  kIf,
  kFor,
  kSet,
  kSetBlock,
  kMacro,
  kFilterBlock,
  kWith,
  kScope,
  kBreak,
  kContinue
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  std::string text;  // kText; kMacro: its name
  ExprPtr target;    // kFor, kSet, kSetBlock: name, tuple of names, or namespace attribute
  ExprPtr value;  // kPrint, kSet, kFor (iterable), kFilterBlock/kSetBlock (filter on a null child)
  ExprPtr condition;  // kFor: the loop filter
  bool recursive = false;
  std::vector<std::pair<ExprPtr, Body>> branches;  // kIf: condition (null: else) and body
  Body body, otherwise;
  std::vector<std::pair<std::string, ExprPtr>> bindings;  // kWith; kMacro: parameters and defaults
};

/// Parses a template as Jinja with trim_blocks and lstrip_blocks, loop controls and the generation
/// tag. Throws TemplateError (kSyntax, kUnsupported, kLimit).
Body parse(std::string_view source);

/// Filters and tests that `parse` accepts.
bool is_known_filter(std::string_view name);
bool is_known_test(std::string_view name);

}  // namespace bicached::jinja
