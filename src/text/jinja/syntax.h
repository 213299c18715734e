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
  kDict,       // children: key, value, key, value...
  kAttribute,  // child 0 . name
  kItem,       // child 0 [child 1]
  kSlice,      // child 0 [child 1 : child 2 : child 3], each may be null
  kCall,       // child 0 (arguments)
  kFilter,     // child 0 | name(arguments); child 0 null: the text of a block
  kTest,       // child 0 is name(arguments)
  kNegative,
  kNot,
  kBinary,      // child 0 name child 1: or, and, +, -, ~, *, %
  kCompare,     // child 0 ops[0] child 1 ops[1] child 2 ...
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
using Body = std::vector<Stmt>;

enum class StmtKind {
  kText,
  kPrint,
  kIf,
  kFor,
  kSet,
  kSetBlock,
  kMacro,
  kFilterBlock,
  kScope,
  kBreak,
  kContinue
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  std::string text;      // kText; kMacro: its name
  ExprPtr target;        // kFor, kSet, kSetBlock: name, tuple of names, or namespace attribute
  ExprPtr value;         // kPrint, kIf, kSet, kFor (what it goes over), kFilterBlock (its filters)
  ExprPtr condition;     // kFor: the loop filter
  Body body, otherwise;  // kIf and kFor: `otherwise` is else; elif is an if in it
  std::vector<std::pair<std::string, ExprPtr>> parameters;  // kMacro: names and defaults
};

/// Parses a template as Jinja with trim_blocks and lstrip_blocks, loop controls and the generation
/// tag. Throws TemplateError (kSyntax, kUnsupported, kLimit).
Body parse(std::string_view source);

}  // namespace bicached::jinja
