// What operators do: comparing, arithmetic, attributes, items, slices, iteration.
#include <algorithm>

#include "base/utf8.h"
#include "text/jinja/runtime.h"

namespace bicached::jinja {
namespace {

Value loop_attribute(const LoopState& loop, const std::string& name) {
  const auto size = static_cast<int64_t>(loop.items.size());
  const auto index = static_cast<int64_t>(loop.index);
  const std::pair<std::string_view, Value> numbers[] = {
      {"index", Value::integer(index + 1)},
      {"index0", Value::integer(index)},
      {"revindex", Value::integer(size - index)},
      {"revindex0", Value::integer(size - index - 1)},
      {"first", Value::boolean(index == 0)},
      {"last", Value::boolean(index + 1 == size)},
      {"length", Value::integer(size)}};
  for (const auto& [known, value] : numbers) {
    if (known == name) return value;
  }
  if (name == "previtem")
    return index > 0 ? loop.items[loop.index - 1] : Value::undefined("there is no previous item");
  if (name == "nextitem")
    return index + 1 < size ? loop.items[loop.index + 1]
                            : Value::undefined("there is no next item");
  fail_unsupported("loop." + name);
}

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

Value repeated(const Value& text, int64_t times, Meter& meter) {
  const size_t one = text.text().size();
  std::string out;
  for (int64_t i = 0; one > 0 && i < times; ++i) {
    meter.charge(one);
    out += text.text();
  }
  return Value::string(std::move(out));
}

bool can_be_indexed(const Value& v) {
  return v.origin() == Origin::kList || v.origin() == Origin::kRange;
}

}  // namespace

void Meter::charge(const Value& v) {
  if (v.is(Kind::kString)) charge(v.text().size());
  if (v.is_sequence()) charge(v.items().size() * sizeof(Value));
  if (v.is(Kind::kDict)) charge(v.members().size() * 2 * sizeof(Value));
}

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
    case Kind::kTuple:
      if (a.origin() != b.origin()) fail_unsupported("comparing lists with generators");
      return std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(),
                        [&](const Value& x, const Value& y) { return equal(x, y, meter); });
    case Kind::kDict:
      if (a.members().size() != b.members().size()) return false;
      return std::all_of(a.members().begin(), a.members().end(), [&](const auto& m) {
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
  if (a.is_sequence() && a.kind() == b.kind()) {
    const size_t n = std::min(a.items().size(), b.items().size());
    for (size_t i = 0; i < n; ++i) {
      if (!equal(a.items()[i], b.items()[i], meter)) return less(a.items()[i], b.items()[i], meter);
    }
    return a.items().size() < b.items().size();
  }
  if (a.is(Kind::kUndefined) || b.is(Kind::kUndefined)) {
    fail_runtime((a.is(Kind::kUndefined) ? a : b).undefined_message());
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
    case Kind::kTuple:
      return std::any_of(container.items().begin(), container.items().end(),
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
  if (op == "~") {
    std::string text = to_text(a, meter);
    return Value::string(std::move(text) + to_text(b, meter));
  }
  for (const Value* v : {&a, &b}) {
    if (v->is(Kind::kUndefined)) fail_runtime(v->undefined_message());
    if (v->is(Kind::kFloat) || v->is(Kind::kBigInt))
      fail_unsupported("the operator " + op + " with a number that is no integer of 64 bits");
  }
  if (a.is_integer() && b.is_integer())
    return Value::integer(integers(op, a.as_integer(), b.as_integer()));
  if (a.is_markup() || b.is_markup())
    fail_unsupported("the operator " + op + " with text behind safe");
  if (op == "+" && a.is(Kind::kString) && b.is(Kind::kString)) {
    meter.charge(a), meter.charge(b);
    return Value::string(a.text() + b.text());
  }
  if (op == "+" && a.is_sequence() && a.kind() == b.kind() && a.origin() == Origin::kList &&
      b.origin() == Origin::kList) {
    meter.charge(a), meter.charge(b);
    Items items = a.items();
    items.insert(items.end(), b.items().begin(), b.items().end());
    return a.is(Kind::kList) ? Value::list(std::move(items)) : Value::tuple(std::move(items));
  }
  if (op == "*" && (a.is_integer() || b.is_integer())) {
    const Value& what = a.is_integer() ? b : a;
    if (what.is(Kind::kString)) return repeated(what, (a.is_integer() ? a : b).as_integer(), meter);
    if (what.is_sequence()) fail_unsupported("the operator * with a " + type_name(what));
  }
  if (op == "%" && a.is(Kind::kString)) fail_unsupported("the operator % with a str");
  if (op == "+" && a.is(Kind::kString))
    fail_runtime("can only concatenate str (not \"" + type_name(b) + "\") to str");
  fail_runtime("unsupported operand type(s) for " + op + ": '" + type_name(a) + "' and '" +
               type_name(b) + "'");
}

Value get_attribute(const Value& object, const std::string& name) {
  if (object.is(Kind::kUndefined)) fail_runtime(object.undefined_message());
  if (name.starts_with("_")) {
    fail_runtime("access to attribute '" + name + "' of '" + type_name(object) +
                 "' object is unsafe.");
  }
  if (object.is(Kind::kLoop)) return loop_attribute(object.loop_state(), name);
  if (object.is(Kind::kCallable) || object.is(Kind::kFloat) || object.is_integer() ||
      object.is(Kind::kBigInt)) {
    fail_unsupported("an attribute of a " + type_name(object));
  }
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
  } else if ((object.is_sequence() || object.is(Kind::kString)) && key.is_integer()) {
    if (!can_be_indexed(object)) fail_unsupported("an item of a " + type_name(object));
    if (object.is(Kind::kString)) meter.charge(object);
    const auto size = static_cast<int64_t>(
        object.is(Kind::kString) ? count_code_points(object.text()) : object.items().size());
    const int64_t index = key.as_integer() < 0 ? key.as_integer() + size : key.as_integer();
    if (index < 0 || index >= size)
      return Value::undefined("'" + type_name(object) + " object' has no element " +
                              std::to_string(key.as_integer()));
    if (object.is_sequence()) return object.items()[static_cast<size_t>(index)];
    return slice(object, Value::integer(index), Value::integer(index + 1), Value::none(), meter);
  }
  if (!key.is(Kind::kString))
    return Value::undefined("'" + type_name(object) + " object' has no such element");
  return get_attribute(object, key.text());
}

Value slice(const Value& object, const Value& start, const Value& stop, const Value& step_value,
            Meter& meter) {
  if (object.is(Kind::kUndefined)) fail_runtime(object.undefined_message());
  if ((!object.is_sequence() && !object.is(Kind::kString)) || !can_be_indexed(object) ||
      object.is_markup()) {
    fail_unsupported("a slice of a " + type_name(object));
  }
  for (const Value* part : {&start, &stop, &step_value}) {
    if (!part->is(Kind::kNone) && !part->is_integer())
      fail_runtime("slice indices must be integers or None");
  }
  meter.charge(object);
  // Where each character begins: a text of N characters is cut without N values.
  std::vector<size_t> begins;
  const std::string* text = object.is(Kind::kString) ? &object.text() : nullptr;
  if (text) meter.charge(text->size() * sizeof(size_t));
  for (size_t pos = 0; text && pos < text->size(); next_code_point(*text, pos))
    begins.push_back(pos);
  begins.push_back(text ? text->size() : 0);

  const auto size = static_cast<int64_t>(text ? begins.size() - 1 : object.items().size());
  const int64_t step = step_value.is(Kind::kNone) ? 1 : step_value.as_integer();
  if (step == 0) fail_runtime("slice step cannot be zero");
  const auto place = [&](const Value& v, int64_t otherwise) {
    if (v.is(Kind::kNone)) return otherwise;
    int64_t i = v.as_integer();
    if (i < 0) i = i < -size ? -1 : i + size;
    return step > 0 ? std::clamp<int64_t>(i, 0, size) : std::clamp<int64_t>(i, -1, size - 1);
  };
  const int64_t first = place(start, step > 0 ? 0 : size - 1);
  const int64_t last = place(stop, step > 0 ? size : -1);
  const int64_t stride = std::clamp<int64_t>(step, -size - 1, size + 1);
  std::string cut;
  Items items;
  for (int64_t i = first; stride > 0 ? i < last : i > last; i += stride) {
    const auto at = static_cast<size_t>(i);
    if (text) {
      cut.append(*text, begins[at], begins[at + 1] - begins[at]);
    } else {
      items.push_back(object.items()[at]);
    }
  }
  if (text) return Value::string(std::move(cut));
  return object.is(Kind::kTuple) ? Value::tuple(std::move(items))
                                 : Value::list(std::move(items), object.origin());
}

Items iterate(const Value& v, Meter& meter) {
  meter.charge(v);
  Items out;
  switch (v.kind()) {
    case Kind::kUndefined: return out;
    case Kind::kList:
    case Kind::kTuple: return v.take_items();
    case Kind::kDict:
      for (const auto& member : v.members()) out.push_back(member.first);
      return out;
    case Kind::kString:
      meter.charge(v.text().size() * 4 * sizeof(Value));  // a character is a value and its text
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
