#include "text/jinja/value.h"

namespace bicached::jinja {

void fail(Failure failure, const std::string& message) { throw TemplateError(failure, message); }

void fail_unsupported(const std::string& what) {
  fail(Failure::kUnsupported, what + " is not supported by this server's template engine");
}

void Value::hold(const Value& child) {
  if (child.is(Kind::kNamespace)) fail_unsupported("a namespace inside another value");
  if (child.depth_ >= kMaxDepth) fail(Failure::kLimit, "a value is nested too deep");
  depth_ = std::max<uint8_t>(depth_, child.depth_ + 1);
}

Value Value::markup(std::string s) {
  Value v = string(std::move(s));
  v.markup_ = true;
  return v;
}

Value Value::list(Items items, Origin origin) {
  Value v(Kind::kList, std::monostate());
  for (const Value& item : items) v.hold(item);
  v.data_ = share(std::move(items));
  v.origin_ = origin;
  return v;
}

Value Value::tuple(Items items) {
  Value v = list(std::move(items));
  v.kind_ = Kind::kTuple;
  return v;
}

Value Value::dict(Members members) {
  Value v(Kind::kDict, std::monostate());
  for (const auto& [key, value] : members) v.hold(key), v.hold(value);
  v.data_ = share(std::move(members));
  return v;
}

Value Value::namespace_of(Members members) {
  Value v = dict(std::move(members));
  v.kind_ = Kind::kNamespace;
  return v;
}

double Value::as_number() const {
  return is(Kind::kFloat) ? std::get<double>(data_) : static_cast<double>(as_integer());
}

Items Value::take_items() const {
  Items& own = *std::get<std::shared_ptr<Items>>(data_);
  return origin_ == Origin::kGenerator ? std::move(own) : own;
}

const Value* Value::member(std::string_view key) const {
  for (const auto& [k, v] : members()) {
    if (k.is(Kind::kString) && k.text() == key) return &v;
  }
  return nullptr;
}

void Value::set_member(const std::string& key, Value value) const {
  Value(*this).hold(value);  // refuses what no container may hold
  Members& own = *std::get<std::shared_ptr<Members>>(data_);
  for (auto& [k, v] : own) {
    if (k.is(Kind::kString) && k.text() == key) {
      v = std::move(value);
      return;
    }
  }
  own.emplace_back(string(key), std::move(value));
}

std::string Value::undefined_message() const {
  return std::holds_alternative<std::monostate>(data_) ? "value is undefined" : text();
}

bool truthy(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return false;
    case Kind::kBool:
    case Kind::kInt: return v.as_integer() != 0;
    case Kind::kFloat: return v.as_number() != 0;
    case Kind::kString: return !v.text().empty();
    case Kind::kList:
    case Kind::kTuple: return v.origin() == Origin::kGenerator || !v.items().empty();
    case Kind::kDict: return !v.members().empty();
    default: return true;
  }
}

std::string type_name(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined: return "Undefined";
    case Kind::kNone: return "NoneType";
    case Kind::kBool: return "bool";
    case Kind::kInt:
    case Kind::kBigInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kString: return "str";
    case Kind::kList:
      return v.origin() == Origin::kList    ? "list"
             : v.origin() == Origin::kRange ? "range"
             : v.origin() == Origin::kView  ? "dict view"
                                            : "generator";
    case Kind::kTuple: return "tuple";
    case Kind::kDict: return "dict";
    case Kind::kNamespace: return "Namespace";
    case Kind::kCallable: return "function";
    case Kind::kLoop: return "LoopContext";
  }
  return "object";
}

}  // namespace bicached::jinja
