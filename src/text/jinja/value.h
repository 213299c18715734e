#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace bicached::jinja {

/// Why a template could not be compiled or rendered.
enum class Failure {
  kSyntax,       // the source is no template
  kUnsupported,  // Jinja has it, this engine has not; nothing is ever rendered otherwise than Jinja
  kRuntime,      // an error that Jinja raises as well
  kRaised,       // raise_exception: the message is the template author's
  kLimit,        // too many steps, too much text or nesting
};

class TemplateError : public std::runtime_error {
 public:
  TemplateError(Failure failure, const std::string& message)
      : std::runtime_error(message), failure_(failure) {}
  Failure failure() const { return failure_; }

 private:
  Failure failure_;
};

[[noreturn]] void fail(Failure failure, const std::string& message);
[[noreturn]] inline void fail_runtime(const std::string& m) { fail(Failure::kRuntime, m); }
[[noreturn]] inline void fail_unsupported(const std::string& what) {
  fail(Failure::kUnsupported, what + " is not supported by this server's template engine");
}

enum class Kind {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kBigInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kNamespace,
  kCallable,
  kLoop
};

/// Where a list came from, where that shows: Python prints and indexes these differently.
enum class ListOrigin { kList, kGenerator, kView, kRange, kGroup };

class Value;
struct LoopState;

/// Arguments of a call, filter or test.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  /// The argument at `index` or called `name`; null when absent.
  const Value* find(size_t index, std::string_view name) const;
  Value get(size_t index, std::string_view name, Value otherwise) const;
  /// Throws when there are more than `max_positional`, or a name that is not in `names`.
  void check(const std::string& function, size_t max_positional,
             std::initializer_list<std::string_view> names = {}) const;
};

using Function = std::function<Value(const Arguments&)>;
using Items = std::vector<Value>;
using Members = std::vector<std::pair<Value, Value>>;  // in order of insertion

/// A Python value as templates see it. Containers are shared by copies, as in Python, and are never
/// changed after they are made (the sandbox forbids it), except namespaces.
class Value {
 public:
  Value() = default;  // undefined
  static Value undefined(std::string message) {
    Value v;
    v.text_ = std::make_shared<std::string>(std::move(message));
    return v;
  }
  static Value none() { return Value(Kind::kNone); }
  static Value boolean(bool b) {
    Value v(Kind::kBool);
    v.integer_ = b;
    return v;
  }
  static Value integer(int64_t i) {
    Value v(Kind::kInt);
    v.integer_ = i;
    return v;
  }
  static Value big_integer(std::string digits) {
    Value v(Kind::kBigInt);
    v.text_ = std::make_shared<std::string>(std::move(digits));
    return v;
  }
  static Value number(double d) {
    Value v(Kind::kFloat);
    v.number_ = d;
    return v;
  }
  static Value string(std::string s) {
    Value v(Kind::kString);
    v.text_ = std::make_shared<std::string>(std::move(s));
    return v;
  }
  /// Text that counts as HTML already (filters e and safe): only printing it is supported.
  static Value markup(std::string s) {
    Value v = string(std::move(s));
    v.markup_ = true;
    return v;
  }
  static Value list(Items items, ListOrigin origin = ListOrigin::kList) {
    Value v(Kind::kList);
    v.items_ = std::make_shared<Items>(std::move(items));
    v.origin_ = origin;
    return v;
  }
  static Value tuple(Items items, ListOrigin origin = ListOrigin::kList) {
    Value v(Kind::kTuple);
    v.items_ = std::make_shared<Items>(std::move(items));
    v.origin_ = origin;
    return v;
  }
  static Value dict(Members members) {
    Value v(Kind::kDict);
    v.members_ = std::make_shared<Members>(std::move(members));
    return v;
  }
  static Value namespace_of(Members members) {
    Value v(Kind::kNamespace);
    v.members_ = std::make_shared<Members>(std::move(members));
    return v;
  }
  static Value callable(Function f) {
    Value v(Kind::kCallable);
    v.function_ = std::make_shared<Function>(std::move(f));
    return v;
  }
  static Value loop(std::shared_ptr<LoopState> state) {
    Value v(Kind::kLoop);
    v.loop_ = std::move(state);
    return v;
  }

  Kind kind() const { return kind_; }
  bool is(Kind k) const { return kind_ == k; }
  bool is_number() const { return is(Kind::kInt) || is(Kind::kFloat) || is(Kind::kBool); }
  bool is_integer() const { return is(Kind::kInt) || is(Kind::kBool); }
  bool is_sequence() const { return is(Kind::kList) || is(Kind::kTuple); }
  bool is_markup() const { return markup_; }
  ListOrigin origin() const { return origin_; }

  int64_t as_integer() const { return integer_; }  // bool and int
  double as_number() const { return is(Kind::kFloat) ? number_ : static_cast<double>(integer_); }
  const std::string& text() const { return *text_; }
  const Items& items() const { return *items_; }
  Items take_generated() const { return std::move(*items_); }  // a generator gives its items once
  const Members& members() const { return *members_; }
  const Value* member(std::string_view key) const;
  const Value* member(const Value& key) const;
  void set_member(const std::string& key, Value value) const;  // namespaces only
  const Function& function() const { return *function_; }
  const std::shared_ptr<LoopState>& loop_state() const { return loop_; }
  /// Why it is undefined ("'x' is undefined").
  std::string undefined_message() const { return text_ ? *text_ : "value is undefined"; }

 private:
  explicit Value(Kind kind) : kind_(kind) {}

  Kind kind_ = Kind::kUndefined;
  bool markup_ = false;
  ListOrigin origin_ = ListOrigin::kList;
  int64_t integer_ = 0;
  double number_ = 0;
  std::shared_ptr<std::string> text_;
  std::shared_ptr<Items> items_;
  std::shared_ptr<Members> members_;
  std::shared_ptr<Function> function_;
  std::shared_ptr<LoopState> loop_;
};

struct LoopState {
  Items items;
  size_t index = 0;
  int depth = 1;
  Function recurse;  // empty: the loop is not recursive
  Items last_changed;
};

bool truthy(const Value& v);
bool equal(const Value& a, const Value& b);
/// a < b; throws for kinds that have no order.
bool less(const Value& a, const Value& b);
bool contains(const Value& container, const Value& item);
/// Python's type name, for messages.
std::string type_name(const Value& v);
/// Python's str() and repr().
std::string to_text(const Value& v);
std::string to_repr(const Value& v, int depth = 0);
std::string float_repr(double d);
/// What iterating gives: items, keys, characters. Throws when it can't be iterated.
Items iterate(const Value& v);

struct JsonStyle {
  bool ensure_ascii = false;
  int indent = -1;  // -1: one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
/// Python's json.dumps.
std::string to_json(const Value& v, const JsonStyle& style, int depth = 0);
/// Reads JSON, integers of any size included. Throws TemplateError when it isn't JSON.
Value parse_json(std::string_view text);

}  // namespace bicached::jinja
