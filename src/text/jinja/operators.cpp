// What operators do: comparing, arithmetic, attributes, items, slices, iteration.
#include <algorithm>

#include "base/utf8.h"
#include "text/jinja/run.h"

namespace bicached::jinja {
namespace {

Value integers(std::string_view op, int64_t a, int64_t b) {
  if (op == "%") {
    if (b == 0) fail_runtime("integer modulo by zero");
    const int64_t rest = b == -1 ? 0 : a % b;
    const bool other_sign = rest != 0 && (rest < 0) != (b < 0);
    return Value::integer(other_sign ? rest + b : rest);  // the sign of b, as in Python
  }
  int64_t out = 0;
  const bool overflow = op == "+"   ? __builtin_add_overflow(a, b, &out)
                        : op == "-" ? __builtin_sub_overflow(a, b, &out)
                                    : __builtin_mul_overflow(a, b, &out);
  if (overflow) refuse("an integer beyond 64 bits");
  return Value::integer(out);
}

/// `text` so many times.
Value repeated(const Value& text, int64_t times, Meter& meter) {
  std::string out;
  for (int64_t i = 0; !text.text().empty() && i < times; ++i) {
    meter.make(text.text().size());
    out += text.text();
  }
  return Value::string(std::move(out));
}

Value arithmetic(std::string_view op, const Value& a, const Value& b, Meter& meter) {
  const std::string name = "the operator " + std::string(op);
  for (const Value* v : {&a, &b}) {
    v->require_defined();
    if (v->is(kFloat) || v->is(kBigInt)) refuse(name + " with a float or a big integer");
    if (v->is_markup()) refuse(name + " with text behind safe");
    if (op == "*" && v->has_items()) refuse(name + " with a " + type_name(*v));
  }
  if (op == "/" || op == "//" || op == "**") refuse(name);
  if (op == "%" && a.is(kString)) refuse(name + " with a str");
  if (a.is_integer() && b.is_integer()) return integers(op, a.as_integer(), b.as_integer());
  if (op == "*" && a.is(kString) && b.is_integer()) return repeated(a, b.as_integer(), meter);
  if (op == "*" && a.is_integer() && b.is(kString)) return repeated(b, a.as_integer(), meter);
  if (op == "+" && a.is(kString) && b.is(kString)) return Value::string(a.text() + b.text());
  if (op == "+" && a.kind() == b.kind() && (a.is(kList) || a.is(kTuple))) {
    Items items = a.items();
    items.insert(items.end(), b.items().begin(), b.items().end());
    return Value::list(std::move(items), a.kind());
  }
  fail_runtime(name + " of a " + type_name(a) + " and a " + type_name(b));
}

bool contains(const Value& container, const Value& item, Meter& meter) {
  meter.charge(container);
  if (container.is(kUndefined)) return false;
  if (container.is(kDict)) return find_member(container.members(), item, meter) != nullptr;
  if (container.has_items())
    return std::ranges::any_of(container.items(),
                               [&](const Value& v) { return equal(v, item, meter); });
  if (!container.is(kString)) fail_runtime("a search in a " + type_name(container));
  if (!item.is(kString)) fail_runtime("a search for a " + type_name(item) + " in a str");
  meter.charge(3 * container.text().size());  // a search costs more than a copy
  return container.text().find(item.text()) != std::string::npos;
}

Value loop_attribute(const Loop& loop, const std::string& name) {
  const size_t index = loop.index, size = loop.items.size();
  if (name == "index") return Value::integer(index + 1);
  if (name == "index0") return Value::integer(index);
  if (name == "revindex") return Value::integer(size - index);
  if (name == "revindex0") return Value::integer(size - index - 1);
  if (name == "length") return Value::integer(size);
  if (name == "first") return Value::boolean(index == 0);
  if (name == "last") return Value::boolean(index + 1 == size);
  const size_t other = name == "previtem" ? index - 1 : index + 1;
  if (name != "previtem" && name != "nextitem") refuse("loop." + name);
  return other < size ? loop.items[other] : Value::undefined("there is no " + name);
}

/// What has items that are counted: a text's are its characters.
bool can_be_indexed(const Value& v) {
  return v.is(kString) || (v.has_items() && !v.is(kGenerator) && !v.is(kView));
}

int64_t size_of(const Value& v) {
  const bool is_text = v.is(kString);
  return static_cast<int64_t>(is_text ? count_code_points(v.text()) : v.items().size());
}

/// Every so many-th item of `all` from `first` on, up to before `last`.
template <class List>
List picked(const List& all, int64_t first, int64_t last, int64_t step) {
  List out;
  for (int64_t i = first; step > 0 ? i < last : i > last; i += step)
    out.push_back(all[static_cast<size_t>(i)]);
  return out;
}

}  // namespace

bool equal(const Value& a, const Value& b, Meter& meter) {
  meter.step();
  if (a.is_integer() && b.is_integer()) return a.as_integer() == b.as_integer();
  if (a.is_number() && b.is_number()) return a.as_number() == b.as_number();
  if (a.kind() != b.kind()) return false;
  if (a.is_missing()) return true;
  if (a.is(kString) || a.is(kBigInt)) {
    if (a.text().size() != b.text().size()) return false;
    meter.charge(a);
    return a.text() == b.text();
  }
  const auto same = [&](const Value& x, const Value& y) { return equal(x, y, meter); };
  if (a.is(kList) || a.is(kTuple)) return std::ranges::equal(a.items(), b.items(), same);
  if (!a.is(kDict)) refuse("comparing a " + type_name(a) + " with another");
  if (a.members().size() != b.members().size()) return false;
  return std::ranges::all_of(a.members(), [&](const auto& member) {
    const Value* other = find_member(b.members(), member.first, meter);
    return other && same(member.second, *other);
  });
}

bool less(const Value& a, const Value& b, Meter& meter) {
  meter.step();
  if (a.is_integer() && b.is_integer()) return a.as_integer() < b.as_integer();
  if (a.is_number() && b.is_number()) return a.as_number() < b.as_number();
  if (a.is(kString) && b.is(kString)) {
    meter.charge(std::min(a.text().size(), b.text().size()));
    return a.text() < b.text();
  }
  if (a.has_items() && b.has_items()) refuse("< or > of lists");
  a.require_defined();
  b.require_defined();
  fail_runtime("the operator < of a " + type_name(a) + " and a " + type_name(b));
}

const Value* find_member(const Members& members, const Value& key, Meter& meter) {
  for (const auto& [k, v] : members) {
    if (equal(k, key, meter)) return &v;
  }
  return nullptr;
}

Value binary(std::string_view op, const Value& a, const Value& b, Meter& meter) {
  if (op == "==") return Value::boolean(equal(a, b, meter));
  if (op == "!=") return Value::boolean(!equal(a, b, meter));
  if (op == "<") return Value::boolean(less(a, b, meter));
  if (op == ">") return Value::boolean(less(b, a, meter));
  if (op == "<=") return Value::boolean(!less(b, a, meter));
  if (op == ">=") return Value::boolean(!less(a, b, meter));
  if (op == "in") return Value::boolean(contains(b, a, meter));
  if (op == "not in") return Value::boolean(!contains(b, a, meter));
  if (op == "~") return Value::string(to_text(a, meter) + to_text(b, meter));
  return arithmetic(op, a, b, meter);
}

Value get_attribute(const Value& object, const std::string& name, Meter& meter) {
  object.require_defined();
  if (name.starts_with("_")) fail_runtime("access to attribute '" + name + "' is unsafe.");
  if (object.is(kLoop)) return loop_attribute(object.loop(), name);
  if (object.is(kCallable) || object.is_number() || object.is(kBigInt))
    refuse("an attribute of a " + type_name(object));
  if (find_method(object, name))
    refuse("the method '" + name + "' of a " + type_name(object) + " without a call");
  if (object.is(kDict) || object.is(kNamespace)) {
    meter.charge(object.members().size());  // which are looked through one by one
    if (const Value* found = object.member(name)) return *found;
  }
  return Value::undefined("'" + type_name(object) + " object' has no attribute '" + name + "'");
}

Value get_item(const Value& object, const Value& key, Meter& meter) {
  object.require_defined();
  if (object.is(kDict)) {
    if (const Value* found = find_member(object.members(), key, meter)) return *found;
  } else if ((object.has_items() || object.is(kString)) && key.is_integer()) {
    if (!can_be_indexed(object)) refuse("an item of a " + type_name(object));
    if (object.is(kString)) meter.charge(object);
    const int64_t size = size_of(object);
    const int64_t index = key.as_integer() < 0 ? key.as_integer() + size : key.as_integer();
    if (index >= 0 && index < size) {
      if (object.has_items()) return object.items()[static_cast<size_t>(index)];
      return slice(object, {Value::integer(index), Value::integer(index + 1), Value::none()},
                   meter);
    }
  }
  if (key.is(kString)) return get_attribute(object, key.text(), meter);
  return Value::undefined("'" + type_name(object) + " object' has no such element");
}

Value slice(const Value& object, const std::array<Value, 3>& parts, Meter& meter) {
  object.require_defined();
  if (!can_be_indexed(object) || object.is_markup()) refuse("a slice of a " + type_name(object));
  for (const Value& part : parts) {
    if (!part.is(kNone) && !part.is_integer()) fail_runtime("a slice's bound must be an integer");
  }
  meter.charge(object);
  const int64_t size = size_of(object);
  const int64_t step = parts[2].is(kNone) ? 1 : parts[2].as_integer();
  if (step == 0) fail_runtime("slice step cannot be zero");
  const auto place = [&](const Value& v, int64_t otherwise) {
    if (v.is(kNone)) return otherwise;
    int64_t i = v.as_integer();
    if (i < 0) i = i < -size ? -1 : i + size;
    return step > 0 ? std::clamp<int64_t>(i, 0, size) : std::clamp<int64_t>(i, -1, size - 1);
  };
  const int64_t first = place(parts[0], step > 0 ? 0 : size - 1);
  const int64_t last = place(parts[1], step > 0 ? size : -1);
  const int64_t stride = std::clamp<int64_t>(step, -size - 1, size + 1);
  if (object.has_items())
    return Value::list(picked(object.items(), first, last, stride), object.kind());
  // A text is cut by its characters, which take four bytes each.
  meter.charge(object.text().size() * sizeof(char32_t));
  std::u32string characters;
  characters.reserve(static_cast<size_t>(size));
  for (size_t pos = 0; pos < object.text().size();)
    characters += next_code_point(object.text(), pos);
  std::string cut;
  for (const char32_t c : picked(characters, first, last, stride)) append_utf8(cut, c);
  return Value::string(std::move(cut));
}

Items iterate(const Value& v, Meter& meter) {
  meter.made(v);
  Items out;
  if (v.has_items()) return v.take();
  if (v.is(kDict)) {
    for (const auto& member : v.members()) out.push_back(member.first);
  } else if (v.is(kString)) {
    meter.make(v.text().size() * 4 * sizeof(Value));  // a character is a value and its text
    for (size_t begin = 0, end = 0; end < v.text().size(); begin = end) {
      next_code_point(v.text(), end);
      out.push_back(Value::string(v.text().substr(begin, end - begin)));
    }
  } else if (!v.is(kUndefined)) {
    fail_runtime("'" + type_name(v) + "' object is not iterable");
  }
  return out;
}

}  // namespace bicached::jinja
