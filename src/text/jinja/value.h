#pragma once

#include <bit>
#include <concepts>
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

[[noreturn]] inline void fail(Failure failure, const std::string& message) {
  throw TemplateError(failure, message);
}
[[noreturn]] inline void fail_runtime(const std::string& m) { fail(Failure::kRuntime, m); }
[[noreturn]] inline void refuse(const std::string& what) {
  fail(Failure::kUnsupported, what + " is not supported by this server's template engine");
}

/// From kList to kRange: what holds items.
enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kBigInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kGenerator,
  kView,
  kRange,
  kDict,
  kNamespace,
  kCallable,
  kLoop
};
using enum Kind;

class Value;
struct Loop;
using Items = std::vector<Value>;
using Members = std::vector<std::pair<Value, Value>>;  // in order of insertion
using Arguments = Members;                             // undefined instead of a name: by place
using Function = std::function<Value(const Arguments&)>;

/// A Python value as templates see it. Containers are shared by copies, as in Python, and are never
/// changed after they are made (the sandbox forbids it), except namespaces. No container holds a
/// namespace or a loop and none is nested deeper than kMaxDepth, so that values form no cycles and
/// every recursion over one ends.
class Value {
 public:
  static constexpr int kMaxDepth = 100;

  Value() = default;  // undefined
  static Value undefined(std::string why) { return {kUndefined, share(std::move(why))}; }
  static Value none() { return {kNone, int64_t{0}}; }
  static Value boolean(bool b) { return {kBool, int64_t{b}}; }
  static Value integer(std::integral auto i) { return {kInt, static_cast<int64_t>(i)}; }
  static Value big_integer(std::string digits) { return {kBigInt, share(std::move(digits))}; }
  static Value number(double d) { return {kFloat, std::bit_cast<int64_t>(d)}; }
  static Value string(std::string s) { return {kString, share(std::move(s))}; }
  static Value markup(std::string s) { return {kString, share(std::move(s)), true}; }
  static Value list(Items items, Kind kind = kList) {
    Value v(kind, 0);
    for (const Value& item : items) v.hold(item);
    v.shared_ = share(std::move(items));
    return v;
  }
  static Value dict(Members members, Kind kind = kDict) {
    Value v(kind, 0);
    for (const auto& [key, value] : members) {
      v.hold(key);
      v.hold(value);
    }
    v.shared_ = share(std::move(members));
    return v;
  }
  static Value callable(Function f) { return {kCallable, share(std::move(f))}; }
  static Value loop(std::shared_ptr<Loop> l) { return {kLoop, l}; }

  Kind kind() const { return kind_; }
  bool is(Kind k) const { return kind_ == k; }
  bool has_items() const { return kind_ >= kList && kind_ <= kRange; }
  bool is_integer() const { return is(kInt) || is(kBool); }
  bool is_number() const { return is_integer() || is(kFloat); }
  bool is_missing() const { return is(kUndefined) || is(kNone); }
  bool is_markup() const { return markup_; }  // counts as HTML already (the filter safe)

  int64_t as_integer() const { return bits_; }  // bool and int
  double as_number() const {
    return is(kFloat) ? std::bit_cast<double>(bits_) : static_cast<double>(bits_);
  }
  const std::string& text() const { return held<std::string>(!has_items() && kind_ < kDict); }
  const Items& items() const { return held<Items>(has_items()); }
  /// What iterating over items gives: a generator gives them once.
  Items take() const { return is(kGenerator) ? std::exchange(held<Items>(true), {}) : items(); }
  const Members& members() const { return members_of_namespace(); }
  const Value* member(std::string_view key) const;
  Members& members_of_namespace() const { return held<Members>(is(kDict) || is(kNamespace)); }
  const Function& function() const { return held<Function>(is(kCallable)); }
  const Loop& loop() const { return held<Loop>(is(kLoop)); }
  void require_defined() const {
    if (is(kUndefined)) fail_runtime(shared_ ? text() : "value is undefined");
  }

 private:
  Value(Kind kind, int64_t bits) : bits_(bits), kind_(kind) {}
  Value(Kind kind, std::shared_ptr<void> shared, bool markup = false)
      : shared_(std::move(shared)), kind_(kind), markup_(markup) {}
  template <class T>
  static std::shared_ptr<void> share(T whole) {
    return std::make_shared<T>(std::move(whole));
  }
  template <class T>
  T& held(bool is_of_kind) const {
    if (!is_of_kind || !shared_) fail_runtime("a value is of another kind");
    return *static_cast<T*>(shared_.get());
  }
  void hold(const Value& child) {
    if (child.is(kNamespace) || child.is(kLoop)) refuse("a namespace or loop inside another value");
    if (child.depth_ >= kMaxDepth) fail(Failure::kLimit, "a value is nested too deep");
    depth_ = std::max<uint8_t>(depth_, child.depth_ + 1);
  }

  std::shared_ptr<void> shared_;  // what the kind says; of a number nothing
  int64_t bits_ = 0;
  Kind kind_ = kUndefined;
  bool markup_ = false;
  uint8_t depth_ = 0;  // of containers in it
};

/// The variable `loop`.
struct Loop {
  Items items;
  size_t index = 0;
};

/// The value of a key that is text, or null.
inline const Value* find_name(const Members& members, std::string_view key) {
  for (const auto& [k, v] : members) {
    if (k.is(kString) && k.text() == key) return &v;
  }
  return nullptr;
}

inline const Value* Value::member(std::string_view key) const { return find_name(members(), key); }

inline void set_name(Members& members, const Value& key, Value value) {
  if (const Value* old = find_name(members, key.text())) {
    const_cast<Value&>(*old) = std::move(value);
  } else {
    members.emplace_back(key, std::move(value));
  }
}

inline bool truthy(const Value& v) {
  if (v.is_missing()) return false;
  if (v.is_number()) return v.as_number() != 0;
  if (v.is(kString)) return !v.text().empty();
  if (v.is(kDict)) return !v.members().empty();
  return !v.has_items() || v.is(kGenerator) || !v.items().empty();
}

/// Python's type name, for messages.
inline std::string type_name(const Value& v) {
  constexpr const char* kNames[] = {
      "Undefined", "NoneType",  "bool",      "int",   "int",  "float",     "str",      "list",
      "tuple",     "generator", "dict view", "range", "dict", "namespace", "function", "loop"};
  return kNames[static_cast<size_t>(v.kind())];
}

}  // namespace bicached::jinja
