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
[[noreturn]] void refuse(const std::string& what);

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

/// The value of a key that is text, or null.
const Value* find_name(const Members& members, std::string_view key);
void set_name(Members& members, std::string_view key, Value value);

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
  static Value number(double d) { return {kFloat, d}; }
  static Value string(std::string s) { return {kString, share(std::move(s))}; }
  static Value markup(std::string s) { return {kString, share(std::move(s)), true}; }
  static Value list(Items items, Kind kind = kList);
  static Value dict(Members members, Kind kind = kDict);
  static Value callable(Function f) { return {kCallable, share(std::move(f))}; }
  static Value loop(std::shared_ptr<Loop> l) { return {kLoop, std::move(l)}; }

  Kind kind() const { return kind_; }
  bool is(Kind k) const { return kind_ == k; }
  bool has_items() const { return kind_ >= kList && kind_ <= kRange; }
  bool is_integer() const { return is(kInt) || is(kBool); }
  bool is_number() const { return is_integer() || is(kFloat); }
  bool is_missing() const { return is(kUndefined) || is(kNone); }
  bool is_markup() const { return markup_; }  // counts as HTML already (the filter safe)

  int64_t as_integer() const { return std::get<int64_t>(data_); }  // bool and int
  double as_number() const {
    return is(kFloat) ? std::get<double>(data_) : static_cast<double>(as_integer());
  }
  const std::string& text() const { return held<std::string>(); }
  const Items& items() const { return held<Items>(); }
  /// What iterating over items gives: a generator gives them once.
  Items take_items() const { return is(kGenerator) ? std::move(held<Items>()) : items(); }
  const Members& members() const { return held<Members>(); }
  const Value* member(std::string_view key) const { return find_name(members(), key); }
  void set_member(std::string_view key, Value value) const;  // namespaces only
  const Function& function() const { return held<Function>(); }
  const Loop& loop() const { return held<Loop>(); }
  /// Why it is undefined ("'x' is undefined").
  std::string undefined_message() const {
    return std::holds_alternative<std::monostate>(data_) ? "value is undefined" : text();
  }

 private:
  template <class T>
  using Shared = std::shared_ptr<T>;
  using Data = std::variant<std::monostate, int64_t, double, Shared<std::string>, Shared<Items>,
                            Shared<Members>, Shared<Function>, Shared<Loop>>;
  Value(Kind kind, Data data, bool markup = false)
      : data_(std::move(data)), kind_(kind), markup_(markup) {}
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
  Kind kind_ = kUndefined;
  bool markup_ = false;
  uint8_t depth_ = 0;  // of containers in it
};

/// The variable `loop`.
struct Loop {
  Items items;
  size_t index = 0;
};

bool truthy(const Value& v);
void require_defined(const Value& v);
/// Python's type name, for messages.
std::string type_name(const Value& v);

}  // namespace bicached::jinja
