#include "text/jinja/value.h"

namespace bicached::jinja {

void fail(Failure failure, const std::string& message) { throw TemplateError(failure, message); }

void refuse(const std::string& what) {
  fail(Failure::kUnsupported, what + " is not supported by this server's template engine");
}

void Value::hold(const Value& child) {
  if (child.is(kNamespace) || child.is(kLoop))
    refuse("a " + type_name(child) + " inside another value");
  if (child.depth_ >= kMaxDepth) fail(Failure::kLimit, "a value is nested too deep");
  depth_ = std::max<uint8_t>(depth_, child.depth_ + 1);
}

Value Value::list(Items items, Kind kind) {
  Value v(kind, std::monostate());
  for (const Value& item : items) v.hold(item);
  v.data_ = share(std::move(items));
  return v;
}

Value Value::dict(Members members, Kind kind) {
  Value v(kind, std::monostate());
  for (const auto& [key, value] : members) {
    v.hold(key);
    v.hold(value);
  }
  v.data_ = share(std::move(members));
  return v;
}

const Value* find_name(const Members& members, std::string_view key) {
  for (const auto& [k, v] : members) {
    if (k.is(kString) && k.text() == key) return &v;
  }
  return nullptr;
}

void set_name(Members& members, std::string_view key, Value value) {
  if (const Value* old = find_name(members, key)) {
    const_cast<Value&>(*old) = std::move(value);
  } else {
    members.emplace_back(Value::string(std::string(key)), std::move(value));
  }
}

void Value::set_member(std::string_view key, Value value) const {
  // A loop may be kept here: its own items hold neither loops nor namespaces.
  if (!value.is(kLoop)) Value().hold(value);
  set_name(held<Members>(), key, std::move(value));
}

bool truthy(const Value& v) {
  if (v.is_missing()) return false;
  if (v.is_number()) return v.as_number() != 0;
  if (v.is(kString)) return !v.text().empty();
  if (v.is(kDict)) return !v.members().empty();
  return !v.has_items() || v.is(kGenerator) || !v.items().empty();
}

void require_defined(const Value& v) {
  if (v.is(kUndefined)) fail_runtime(v.undefined_message());
}

std::string type_name(const Value& v) {
  constexpr const char* kNames[] = {
      "Undefined", "NoneType",  "bool",      "int",   "int",  "float",     "str",      "list",
      "tuple",     "generator", "dict view", "range", "dict", "namespace", "function", "loop"};
  return kNames[static_cast<size_t>(v.kind())];
}

}  // namespace bicached::jinja
