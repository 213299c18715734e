// The table of filters.
#include <algorithm>
#include <cmath>

#include "base/utf8.h"
#include "text/jinja/runtime.h"

namespace bicached::jinja {
namespace {

std::string text_input(const Call& c) {
  if (c.self.is_markup()) fail_unsupported("a filter of text behind safe");
  return to_text(c.self, c.meter);
}

Value length_filter(const Call& c) {
  switch (c.self.kind()) {
    case Kind::kUndefined: return Value::integer(0);
    case Kind::kString:
      return Value::integer(static_cast<int64_t>(count_code_points(c.self.text())));
    case Kind::kDict: return Value::integer(static_cast<int64_t>(c.self.members().size()));
    case Kind::kList:
    case Kind::kTuple:
      if (c.self.origin() != Origin::kGenerator)
        return Value::integer(static_cast<int64_t>(c.self.items().size()));
      [[fallthrough]];
    default: fail_runtime("object of type '" + type_name(c.self) + "' has no len()");
  }
}

/// Follows `a.b.0` as Jinja's filters do for their `attribute`; none: the item itself.
Value attribute_of(const Value& item, const Value& path, Meter& meter) {
  if (path.is(Kind::kUndefined) || path.is(Kind::kNone)) return item;
  if (path.is_integer()) return get_item(item, path, meter);
  if (!path.is(Kind::kString)) fail_runtime("attribute must be a string or an integer");
  Value value = item;
  for (size_t begin = 0; begin <= path.text().size();) {
    const size_t end = std::min(path.text().find('.', begin), path.text().size());
    const std::string part = path.text().substr(begin, end - begin);
    const bool number = !part.empty() && part.size() < 10 &&
                        part.find_first_not_of("0123456789") == std::string::npos;
    value = get_item(value, number ? Value::integer(std::stoll(part)) : Value::string(part), meter);
    begin = end + 1;
  }
  return value;
}

Value sorted(const Items& items, const Value& attribute, const Value& case_sensitive,
             const Value& reverse, Meter& meter) {
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : items) {
    Value key = attribute_of(item, attribute, meter);
    const bool folds = key.is(Kind::kString) && !truthy(case_sensitive);
    keyed.emplace_back(folds ? Value::string(lower(key.text())) : key, item);
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& x, const auto& y) {
    return truthy(reverse) ? less(y.first, x.first, meter) : less(x.first, y.first, meter);
  });
  Items out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return Value::list(std::move(out));
}

Value sort_filter(const Call& c) {
  return sorted(iterate(c.self, c.meter), c[2], c[1], c[0], c.meter);
}

Items pairs_of(const Value& dict) {
  Items pairs;
  for (const auto& [key, value] : dict.members()) pairs.push_back(Value::tuple({key, value}));
  return pairs;
}

Value dictsort_filter(const Call& c) {
  if (!c.self.is(Kind::kDict)) fail_runtime("dictsort needs a dict");
  const bool by_value = c[1].is(Kind::kString) && c[1].text() == "value";
  return sorted(pairs_of(c.self), Value::integer(by_value), c[0], c[2], c.meter);
}

Value items_filter(const Call& c) {
  if (c.self.is(Kind::kUndefined)) return Value::list({}, Origin::kGenerator);
  if (!c.self.is(Kind::kDict)) fail_runtime("Can only get item pairs from a mapping.");
  return Value::list(pairs_of(c.self), Origin::kGenerator);
}

/// The filter or test whose name stands at `index` of a filter's arguments, with those behind it.
struct Named {
  const Builtin* builtin;
  Arguments arguments;
};

Named named(const Arguments& given, size_t index, const Builtin* (*find)(std::string_view)) {
  if (!given.positional[index].is(Kind::kString)) fail_runtime("a filter's or test's name is text");
  const std::string& name = given.positional[index].text();
  Named out{find(name), {}};
  if (!out.builtin) fail_unsupported("the filter or test '" + name + "'");
  out.arguments.positional.assign(given.positional.begin() + static_cast<std::ptrdiff_t>(index) + 1,
                                  given.positional.end());
  out.arguments.named = given.named;
  return out;
}

Value map_filter(const Call& c) {
  Items out;
  if (!truthy(c.self)) return Value::list(std::move(out), Origin::kGenerator);
  if (c.given.positional.empty()) {
    const auto& names = c.given.named;
    if (names.size() != 1 || names[0].first != "attribute")
      fail_unsupported("the filter 'map' with other arguments than attribute or a filter");
    for (const Value& item : iterate(c.self, c.meter))
      out.push_back(attribute_of(item, names[0].second, c.meter));
  } else {
    const Named filter = named(c.given, 0, find_filter);
    for (const Value& item : iterate(c.self, c.meter))
      out.push_back(run(*filter.builtin, item, filter.arguments, c.meter));
  }
  return Value::list(std::move(out), Origin::kGenerator);
}

template <bool kWanted, bool kByAttribute>
Value select_filter(const Call& c) {
  const size_t first = kByAttribute ? 1 : 0;
  if (c.given.positional.size() < first) fail_runtime("Missing parameter for attribute name");
  Items out;
  if (!truthy(c.self)) return Value::list(std::move(out), Origin::kGenerator);
  Named test{nullptr, {}};
  if (c.given.positional.size() > first) test = named(c.given, first, find_test);
  for (const Value& item : iterate(c.self, c.meter)) {
    c.meter.step();
    const Value value = kByAttribute ? attribute_of(item, c.given.positional[0], c.meter) : item;
    const bool holds =
        truthy(test.builtin ? run(*test.builtin, value, test.arguments, c.meter) : value);
    if (holds == kWanted) out.push_back(item);
  }
  return Value::list(std::move(out), Origin::kGenerator);
}

Value join_filter(const Call& c) {
  const std::string separator = to_text(c[0], c.meter);
  std::string out;
  bool first = true;
  for (const Value& item : iterate(c.self, c.meter)) {
    c.meter.charge(separator.size() + 1);
    if (!std::exchange(first, false)) out += separator;
    out += to_text(attribute_of(item, c[1], c.meter), c.meter);
  }
  return Value::string(std::move(out));
}

Value tojson_filter(const Call& c) {
  JsonStyle style;
  style.ensure_ascii = truthy(c[0]);
  const Value &indent = c[1], &separators = c[2];
  if (!indent.is(Kind::kNone) && !indent.is(Kind::kUndefined)) {
    if (!indent.is_integer() || indent.as_integer() < 0 || indent.as_integer() > 100)
      fail_unsupported("tojson with such an indent");
    style.indent = static_cast<int>(indent.as_integer());
    style.item_separator = ",";
  }
  if (separators.is_sequence()) {
    const Items& both = separators.items();
    if (both.size() != 2) fail_runtime("tojson: separators must be two strings");
    style.item_separator = to_text(both[0], c.meter);
    style.key_separator = to_text(both[1], c.meter);
  }
  style.sort_keys = truthy(c[3]);
  return Value::string(to_json(c.self, style, c.meter));
}

template <bool kLast>
Value end_filter(const Call& c) {
  if (c.self.is(Kind::kString)) return get_item(c.self, Value::integer(kLast ? -1 : 0), c.meter);
  if (kLast && c.self.is(Kind::kList) && c.self.origin() == Origin::kGenerator)
    fail_runtime("'generator' object is not reversible");
  const Items items = iterate(c.self, c.meter);
  if (items.empty()) return Value::undefined("No first or last item, sequence was empty.");
  return kLast ? items.back() : items.front();
}

Value int_filter(const Call& c) {
  if (c.self.is_integer()) return Value::integer(c.self.as_integer());
  if (c.self.is(Kind::kFloat) && std::abs(c.self.as_number()) < 9e15)
    return Value::integer(static_cast<int64_t>(c.self.as_number()));
  fail_unsupported("the filter 'int' of a " + type_name(c.self));
}

Value default_filter(const Call& c) {
  const bool missing = c.self.is(Kind::kUndefined) || (truthy(c[1]) && !truthy(c.self));
  if (!missing) return c.self;
  return c.given.positional.empty() && c[0].is(Kind::kUndefined) ? Value::string("") : c[0];
}

Value replace_filter(const Call& c) {
  if (!c[2].is(Kind::kUndefined)) fail_unsupported("the filter 'replace' with a count");
  return Value::string(
      replace(text_input(c), to_text(c[0], c.meter), to_text(c[1], c.meter), -1, c.meter));
}

Value title_filter(const Call& c) {
  const auto ends_word = [](char32_t x) {
    return is_space(x) || x == '-' || x == '(' || x == '{' || x == '[' || x == '<';
  };
  return Value::string(title(text_input(c), ends_word, false));
}

Value trim_filter(const Call& c) { return Value::string(strip(text_input(c), c[0], true, true)); }

Value string_filter(const Call& c) {
  return c.self.is_markup() ? c.self : Value::string(to_text(c.self, c.meter));
}

constexpr Builtin kFilters[] = {
    {"capitalize", [](const Call& c) { return Value::string(capitalize(text_input(c))); }},
    {"count", length_filter},
    {"d", default_filter, 0, 2, {"default_value", "boolean"}},
    {"default", default_filter, 0, 2, {"default_value", "boolean"}},
    {"dictsort", dictsort_filter, 0, 3, {"case_sensitive", "by", "reverse"}},
    {"first", end_filter<false>},
    {"int", int_filter},
    {"items", items_filter},
    {"join", join_filter, 0, 2, {"d", "attribute"}},
    {"last", end_filter<true>},
    {"length", length_filter},
    {"list", [](const Call& c) { return Value::list(iterate(c.self, c.meter)); }},
    {"lower", [](const Call& c) { return Value::string(lower(text_input(c))); }},
    {"map", map_filter, 0, -1},
    {"reject", select_filter<false, false>, 0, -1},
    {"rejectattr", select_filter<false, true>, 0, -1},
    {"replace", replace_filter, 2, 3, {"old", "new", "count"}},
    {"safe", [](const Call& c) { return Value::markup(to_text(c.self, c.meter)); }},
    {"select", select_filter<true, false>, 0, -1},
    {"selectattr", select_filter<true, true>, 0, -1},
    {"sort", sort_filter, 0, 3, {"reverse", "case_sensitive", "attribute"}},
    {"string", string_filter},
    {"title", title_filter},
    {"tojson", tojson_filter, 0, 4, {"ensure_ascii", "indent", "separators", "sort_keys"}},
    {"trim", trim_filter, 0, 1, {"chars"}},
    {"upper", [](const Call& c) { return Value::string(upper(text_input(c))); }},
};
}  // namespace

const Builtin* find_filter(std::string_view name) {
  for (const Builtin& filter : kFilters) {
    if (filter.name == name) return &filter;
  }
  return nullptr;
}

}  // namespace bicached::jinja
