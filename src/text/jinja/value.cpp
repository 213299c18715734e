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

Value Value::dict(Members members, Kind kind) {
  Value v(kind, std::monostate());
  for (const auto& [key, value] : members) v.hold(key), v.hold(value);
  v.data_ = share(std::move(members));
  return v;
}

double Value::as_number() const {
  return is(Kind::kFloat) ? std::get<double>(data_) : static_cast<double>(as_integer());
}

Items Value::take_items() const {
  return origin_ == Origin::kGenerator ? std::move(held<Items>()) : items();
}

const Value* Value::member(std::string_view key) const {
  for (const auto& [k, v] : members()) {
    if (k.is(Kind::kString) && k.text() == key) return &v;
  }
  return nullptr;
}

void Value::set_member(const std::string& key, Value value) const {
  Value(*this).hold(value);  // refuses what no container may hold
  if (const Value* old = member(key)) {
    const_cast<Value&>(*old) = std::move(value);
  } else {
    held<Members>().emplace_back(string(key), std::move(value));
  }
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
    case Kind::kList: return v.is(Origin::kGenerator) || !v.items().empty();
    case Kind::kDict: return !v.members().empty();
    default: return true;
  }
}

std::string type_name(const Value& v) {
  constexpr const char* kNames[] = {"Undefined", "NoneType",  "bool",     "int",
                                    "int",       "float",     "str",      "",
                                    "dict",      "Namespace", "function", "loop"};
  constexpr const char* kLists[] = {"list", "tuple", "generator", "dict view", "range"};
  return v.is(Kind::kList) ? kLists[static_cast<size_t>(v.origin())]
                           : kNames[static_cast<size_t>(v.kind())];
}

}  // namespace bicached::jinja
