// What operators do: comparing, arithmetic, attributes, items, slices, iteration.
#include <algorithm>

#include "base/utf8.h"
#include "text/jinja/run.h"

namespace bicached::jinja {
namespace {

int64_t integers(const std::string& op, int64_t a, int64_t b) {
  int64_t out = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &out);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &out);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &out);
  } else {
    if (b == 0) fail_runtime("integer modulo by zero");
    out = b == -1 ? 0 : a % b;
    if (out != 0 && (out < 0) != (b < 0)) out += b;  // the sign of the divisor, as in Python
  }
  if (overflow) fail_unsupported("an integer beyond 64 bits");
  return out;
}

bool can_be_indexed(const Value& v) {
  return v.is(Kind::kString) || v.is(Origin::kList) || v.is(Origin::kTuple) || v.is(Origin::kRange);
}

/// + and * of texts, + of lists. Undefined: these have no such operator.
Value joined(const std::string& op, const Value& a, const Value& b, Meter& meter) {
  if (op == "+" && a.is(Kind::kString) && b.is(Kind::kString)) {
    meter.charge(a), meter.charge(b);
    return Value::string(a.text() + b.text());
  }
  if (op == "+" && a.origin() == b.origin() &&
      ((a.is(Origin::kList) && b.is(Origin::kList)) ||
       (a.is(Origin::kTuple) && b.is(Origin::kTuple)))) {
    meter.charge(a), meter.charge(b);
    Items items = a.items();
    items.insert(items.end(), b.items().begin(), b.items().end());
    return Value::list(std::move(items), a.origin());
  }
  if (op != "*" || !(a.is_integer() || b.is_integer())) return Value();
  const Value &what = a.is_integer() ? b : a, &times = a.is_integer() ? a : b;
  if (what.is(Kind::kList)) fail_unsupported("the operator * with a " + type_name(what));
  if (!what.is(Kind::kString)) return Value();
  std::string out;
  for (int64_t i = 0; !what.text().empty() && i < times.as_integer(); ++i) {
    meter.make(what.text().size());
    out += what.text();
  }
  return Value::string(std::move(out));
}

Value arithmetic(const std::string& op, const Value& a, const Value& b, Meter& meter) {
  for (const Value* v : {&a, &b}) {
    if (v->is(Kind::kUndefined)) fail_runtime(v->undefined_message());
    if (v->is(Kind::kFloat) || v->is(Kind::kBigInt))
      fail_unsupported("the operator " + op + " with a number that is no integer of 64 bits");
    if (v->is_markup()) fail_unsupported("the operator " + op + " with text behind safe");
  }
  if (op == "/" || op == "//" || op == "**") fail_unsupported("the operator " + op);
  if (op == "%" && a.is(Kind::kString)) fail_unsupported("the operator % with a str");
  if (a.is_integer() && b.is_integer())
    return Value::integer(integers(op, a.as_integer(), b.as_integer()));
  Value out = joined(op, a, b, meter);
  if (!out.is(Kind::kUndefined)) return out;
  fail_runtime("unsupported operand type(s) for " + op + ": '" + type_name(a) + "' and '" +
               type_name(b) + "'");
}

}  // namespace

bool equal(const Value& a, const Value& b, Meter& meter) {
  meter.step();
  if (a.is_integer() && b.is_integer()) return a.as_integer() == b.as_integer();
  if (a.is_number() && b.is_number()) return a.as_number() == b.as_number();
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return true;
    case Kind::kBigInt:
    case Kind::kString:
      if (a.text().size() != b.text().size()) return false;
      meter.charge(a);
      return a.text() == b.text();
    case Kind::kList:
      for (const Value* v : {&a, &b}) {
        if (!v->is(Origin::kList) && !v->is(Origin::kTuple))
          fail_unsupported("comparing a " + type_name(*v));
      }
      return a.origin() == b.origin() &&
             std::ranges::equal(a.items(), b.items(),
                                [&](const Value& x, const Value& y) { return equal(x, y, meter); });
    case Kind::kDict:
      if (a.members().size() != b.members().size()) return false;
      return std::ranges::all_of(a.members(), [&](const auto& m) {
        const Value* other = find_member(b.members(), m.first, meter);
        return other && equal(m.second, *other, meter);
      });
    default: fail_unsupported("comparing functions, loops or namespaces");
  }
}

bool less(const Value& a, const Value& b, Meter& meter) {
  meter.step();
  if (a.is_integer() && b.is_integer()) return a.as_integer() < b.as_integer();
  if (a.is_number() && b.is_number()) return a.as_number() < b.as_number();
  if (a.is(Kind::kString) && b.is(Kind::kString)) {
    meter.charge(std::min(a.text().size(), b.text().size()));
    return a.text() < b.text();
  }
  if (a.is(Kind::kList) && b.is(Kind::kList)) fail_unsupported("< or > of lists");
  for (const Value* v : {&a, &b}) {
    if (v->is(Kind::kUndefined)) fail_runtime(v->undefined_message());
  }
  fail_runtime("'<' not supported between instances of '" + type_name(a) + "' and '" +
               type_name(b) + "'");
}

bool contains(const Value& container, const Value& item, Meter& meter) {
  meter.charge(container);
  switch (container.kind()) {
    case Kind::kUndefined: return false;
    case Kind::kString:
      if (!item.is(Kind::kString)) fail_runtime("'in <string>' requires string as left operand");
      meter.charge(3 * container.text().size());  // a search costs more than a copy
      return container.text().find(item.text()) != std::string::npos;
    case Kind::kDict: return find_member(container.members(), item, meter) != nullptr;
    case Kind::kList:
      return std::ranges::any_of(container.items(),
                                 [&](const Value& v) { return equal(v, item, meter); });
    default: fail_runtime("argument of type '" + type_name(container) + "' is not iterable");
  }
}

const Value* find_member(const Members& members, const Value& key, Meter& meter) {
  for (const auto& [k, v] : members) {
    if (equal(k, key, meter)) return &v;
  }
  return nullptr;
}

Value binary(const std::string& op, const Value& a, const Value& b, Meter& meter) {
  if (op == "==") return Value::boolean(equal(a, b, meter));
  if (op == "!=") return Value::boolean(!equal(a, b, meter));
  if (op == "<") return Value::boolean(less(a, b, meter));
  if (op == ">") return Value::boolean(less(b, a, meter));
  if (op == "<=") return Value::boolean(!less(b, a, meter));
  if (op == ">=") return Value::boolean(!less(a, b, meter));
  if (op == "in") return Value::boolean(contains(b, a, meter));
  if (op == "not in") return Value::boolean(!contains(b, a, meter));
  if (op != "~") return arithmetic(op, a, b, meter);
  std::string text = to_text(a, meter);
  return Value::string(std::move(text) + to_text(b, meter));
}

Value get_attribute(const Value& object, const std::string& name) {
  if (object.is(Kind::kUndefined)) fail_runtime(object.undefined_message());
  if (name.starts_with("_")) fail_runtime("access to attribute '" + name + "' is unsafe.");
  if (object.is(Kind::kLoop)) return object.function()({{Value::string(name)}, {}});
  if (object.is(Kind::kCallable) || object.is_number() || object.is(Kind::kBigInt))
    fail_unsupported("an attribute of a " + type_name(object));
  if (find_method(object, name))
    fail_unsupported("the method '" + name + "' of a " + type_name(object) + " without a call");
  if (object.is(Kind::kDict) || object.is(Kind::kNamespace)) {
    if (const Value* found = object.member(name)) return *found;
  }
  return Value::undefined("'" + type_name(object) + " object' has no attribute '" + name + "'");
}

Value get_item(const Value& object, const Value& key, Meter& meter) {
  if (object.is(Kind::kUndefined)) fail_runtime(object.undefined_message());
  if (object.is(Kind::kDict)) {
    if (const Value* found = find_member(object.members(), key, meter)) return *found;
  } else if ((object.is(Kind::kList) || object.is(Kind::kString)) && key.is_integer()) {
    if (!can_be_indexed(object)) fail_unsupported("an item of a " + type_name(object));
    if (object.is(Kind::kString)) meter.charge(object);
    const auto size = static_cast<int64_t>(
        object.is(Kind::kString) ? count_code_points(object.text()) : object.items().size());
    const int64_t index = key.as_integer() < 0 ? key.as_integer() + size : key.as_integer();
    if (index >= 0 && index < size) {
      if (object.is(Kind::kList)) return object.items()[static_cast<size_t>(index)];
      return slice(object, {Value::integer(index), Value::integer(index + 1), Value::none()},
                   meter);
    }
  }
  if (key.is(Kind::kString)) return get_attribute(object, key.text());
  return Value::undefined("'" + type_name(object) + " object' has no such element");
}

Value slice(const Value& object, const std::array<Value, 3>& parts, Meter& meter) {
  if (object.is(Kind::kUndefined)) fail_runtime(object.undefined_message());
  if (!can_be_indexed(object) || object.is_markup())
    fail_unsupported("a slice of a " + type_name(object));
  for (const Value& part : parts) {
    if (!part.is(Kind::kNone) && !part.is_integer())
      fail_runtime("slice indices must be integers or None");
  }
  const bool is_text = object.is(Kind::kString);
  meter.charge(object);
  // A text is cut by its characters, which take four bytes each.
  std::u32string characters;
  if (is_text) meter.charge(object.text().size() * sizeof(char32_t));
  if (is_text) characters.reserve(count_code_points(object.text()));
  for (size_t pos = 0; is_text && pos < object.text().size();)
    characters += next_code_point(object.text(), pos);
  const auto size = static_cast<int64_t>(is_text ? characters.size() : object.items().size());
  const int64_t step = parts[2].is(Kind::kNone) ? 1 : parts[2].as_integer();
  if (step == 0) fail_runtime("slice step cannot be zero");
  const auto place = [&](const Value& v, int64_t otherwise) {
    if (v.is(Kind::kNone)) return otherwise;
    int64_t i = v.as_integer();
    if (i < 0) i = i < -size ? -1 : i + size;
    return step > 0 ? std::clamp<int64_t>(i, 0, size) : std::clamp<int64_t>(i, -1, size - 1);
  };
  const int64_t last = place(parts[1], step > 0 ? size : -1);
  const int64_t stride = std::clamp<int64_t>(step, -size - 1, size + 1);
  std::string cut;
  Items items;
  for (int64_t i = place(parts[0], step > 0 ? 0 : size - 1); stride > 0 ? i < last : i > last;
       i += stride) {
    if (is_text) {
      append_utf8(cut, characters[static_cast<size_t>(i)]);
    } else {
      items.push_back(object.items()[static_cast<size_t>(i)]);
    }
  }
  return is_text ? Value::string(std::move(cut)) : Value::list(std::move(items), object.origin());
}

Value dict_of(const Items& keys_and_values, Meter& meter) {
  Members members;
  for (size_t i = 0; i + 1 < keys_and_values.size(); i += 2) {
    const Value* same = find_member(members, keys_and_values[i], meter);
    if (same) {
      const_cast<Value&>(*same) = keys_and_values[i + 1];
    } else {
      members.emplace_back(keys_and_values[i], keys_and_values[i + 1]);
    }
  }
  return Value::dict(std::move(members));
}

Items pairs_of(const Members& members) {
  Items pairs;
  for (const auto& [key, value] : members) pairs.push_back(Value::tuple({key, value}));
  return pairs;
}

Items iterate(const Value& v, Meter& meter) {
  meter.made(v);
  Items out;
  switch (v.kind()) {
    case Kind::kUndefined: return out;
    case Kind::kList: return v.take_items();
    case Kind::kDict:
      for (const auto& member : v.members()) out.push_back(member.first);
      return out;
    case Kind::kString:
      meter.make(v.text().size() * 4 * sizeof(Value));  // a character is a value and its text
      for (size_t pos = 0; pos < v.text().size();) {
        const size_t begin = pos;
        next_code_point(v.text(), pos);
        out.push_back(Value::string(v.text().substr(begin, pos - begin)));
      }
      return out;
    default: fail_runtime("'" + type_name(v) + "' object is not iterable");
  }
}

}  // namespace bicached::jinja
