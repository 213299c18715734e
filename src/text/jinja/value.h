#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
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
[[noreturn]] void fail_unsupported(const std::string& what);

enum class Kind {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kBigInt,
  kFloat,
  kString,
  kList,
  kDict,
  kNamespace,
  kCallable,
  kLoop
};

/// What a list is in Python, where that shows: these print and are indexed differently.
enum class Origin : uint8_t { kList, kTuple, kGenerator, kView, kRange };

class Value;
struct Arguments;
using Function = std::function<Value(const Arguments&)>;
using Items = std::vector<Value>;
using Members = std::vector<std::pair<Value, Value>>;  // in order of insertion

/// A Python value as templates see it. Containers are shared by copies, as in Python, and are never
/// changed after they are made (the sandbox forbids it), except namespaces. No container holds a
/// namespace and none is nested deeper than kMaxDepth, so that values form no cycles and every
/// recursion over one ends.
class Value {
 public:
  static constexpr int kMaxDepth = 100;

  Value() = default;  // undefined
  static Value undefined(std::string why) { return {Kind::kUndefined, share(std::move(why))}; }
  static Value none() { return {Kind::kNone, int64_t{0}}; }
  static Value boolean(bool b) { return {Kind::kBool, int64_t{b}}; }
  static Value integer(std::integral auto i) { return {Kind::kInt, static_cast<int64_t>(i)}; }
  static Value big_integer(std::string digits) { return {Kind::kBigInt, share(std::move(digits))}; }
  static Value number(double d) { return {Kind::kFloat, d}; }
  static Value string(std::string s) { return {Kind::kString, share(std::move(s))}; }
  /// Text that counts as HTML already (the filter safe).
  static Value markup(std::string s);
  static Value list(Items items, Origin origin = Origin::kList);
  static Value tuple(Items items) { return list(std::move(items), Origin::kTuple); }
  static Value dict(Members members, Kind kind = Kind::kDict);
  static Value callable(Function f) { return {Kind::kCallable, share(std::move(f))}; }
  /// The variable `loop`: its attributes by their names.
  static Value loop(Function attribute) { return {Kind::kLoop, share(std::move(attribute))}; }

  Kind kind() const { return kind_; }
  bool is(Kind k) const { return kind_ == k; }
  bool is(Origin o) const { return kind_ == Kind::kList && origin_ == o; }
  bool is_integer() const { return is(Kind::kInt) || is(Kind::kBool); }
  bool is_number() const { return is_integer() || is(Kind::kFloat); }
  bool is_missing() const { return is(Kind::kUndefined) || is(Kind::kNone); }
  bool is_markup() const { return markup_; }
  Origin origin() const { return origin_; }

  int64_t as_integer() const { return std::get<int64_t>(data_); }  // bool and int
  double as_number() const;
  const std::string& text() const { return held<std::string>(); }
  const Items& items() const { return held<Items>(); }
  /// What iterating a list gives: a generator gives its items once.
  Items take_items() const;
  const Members& members() const { return held<Members>(); }
  const Value* member(std::string_view key) const;
  void set_member(const std::string& key, Value value) const;  // namespaces only
  const Function& function() const { return held<Function>(); }
  /// Why it is undefined ("'x' is undefined").
  std::string undefined_message() const;

 private:
  template <class T>
  using Shared = std::shared_ptr<T>;
  using Data = std::variant<std::monostate, int64_t, double, Shared<std::string>, Shared<Items>,
                            Shared<Members>, Shared<Function>>;
  Value(Kind kind, Data data) : data_(std::move(data)), kind_(kind) {}
  template <class T>
  static Shared<T> share(T whole) {
    return std::make_shared<T>(std::move(whole));
  }
  template <class T>
  T& held() const {
    return *std::get<Shared<T>>(data_);
  }
  void hold(const Value& child);

  Data data_;
  Kind kind_ = Kind::kUndefined;
  Origin origin_ = Origin::kList;
  bool markup_ = false;
  uint8_t depth_ = 0;  // of containers in it
};

/// Arguments of a call, filter or test.
struct Arguments {
  Items positional;
  std::vector<std::pair<std::string, Value>> named;
};

bool truthy(const Value& v);
/// Python's type name, for messages.
std::string type_name(const Value& v);

}  // namespace bicached::jinja
