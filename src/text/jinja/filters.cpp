// The table of filters.
#include <algorithm>
#include <cmath>

#include "base/utf8.h"
#include "text/jinja/run.h"

namespace bicached::jinja {
namespace {

/// Follows `a.b.0` as Jinja's filters do for their `attribute`; none: the item itself.
Value attribute_of(const Value& item, const Value& path, Meter& meter) {
  if (path.is_missing()) return item;
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

Value length(const Call& c) {
  if (c.self.is(Kind::kUndefined)) return Value::integer(0);
  if (c.self.is(Kind::kString)) return Value::integer(count_code_points(c.self.text()));
  if (c.self.is(Kind::kDict)) return Value::integer(c.self.members().size());
  if (!c.self.is(Kind::kList) || c.self.is(Origin::kGenerator))
    fail_runtime("object of type '" + type_name(c.self) + "' has no len()");
  return Value::integer(c.self.items().size());
}

Value sorted(const Items& items, const Value& attribute, const Value& case_sensitive,
             const Value& reverse, Meter& meter) {
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : items) {
    Value key = attribute_of(item, attribute, meter);
    const bool folds = key.is(Kind::kString) && !truthy(case_sensitive);
    keyed.emplace_back(folds ? Value::string(lower(key.text())) : key, item);
  }
  std::ranges::stable_sort(keyed, [&](const auto& x, const auto& y) {
    return truthy(reverse) ? less(y.first, x.first, meter) : less(x.first, y.first, meter);
  });
  Items out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return Value::list(std::move(out));
}

Value sort(const Call& c) { return sorted(iterate(c.self, c.meter), c[2], c[1], c[0], c.meter); }

Value dictsort(const Call& c) {
  if (!c.self.is(Kind::kDict)) fail_runtime("dictsort needs a dict");
  const bool by_value = c[1].is(Kind::kString) && c[1].text() == "value";
  return sorted(pairs_of(c.self.members()), Value::integer(by_value), c[0], c[2], c.meter);
}

Value items(const Call& c) {
  if (c.self.is(Kind::kUndefined)) return Value::list({}, Origin::kGenerator);
  if (!c.self.is(Kind::kDict)) fail_runtime("Can only get item pairs from a mapping.");
  return Value::list(pairs_of(c.self.members()), Origin::kGenerator);
}

/// The filter or test whose name stands at `index` of a filter's arguments, with those behind it.
Value call_named(const Call& c, size_t index, const Builtin* (*find)(std::string_view),
                 const Value& self) {
  const Items& given = c.given.positional;
  if (!given[index].is(Kind::kString)) fail_runtime("a filter's or test's name is text");
  const Builtin* builtin = find(given[index].text());
  if (!builtin) fail_unsupported("the filter or test '" + given[index].text() + "'");
  const auto begin = given.begin() + static_cast<std::ptrdiff_t>(index) + 1;
  return call(*builtin, self, {{begin, given.end()}, c.given.named}, c.meter);
}

Value map(const Call& c) {
  const auto& names = c.given.named;
  const bool by_attribute = c.given.positional.empty();
  if (by_attribute && (names.size() != 1 || names[0].first != "attribute"))
    fail_unsupported("the filter 'map' with other arguments than attribute or a filter");
  Items out;
  for (const Value& item : truthy(c.self) ? iterate(c.self, c.meter) : Items()) {
    out.push_back(by_attribute ? attribute_of(item, names[0].second, c.meter)
                               : call_named(c, 0, find_filter, item));
  }
  return Value::list(std::move(out), Origin::kGenerator);
}

template <bool kWanted, bool kByAttribute>
Value select(const Call& c) {
  const size_t first = kByAttribute ? 1 : 0;
  if (c.given.positional.size() < first) fail_runtime("Missing parameter for attribute name");
  Items out;
  for (const Value& item : truthy(c.self) ? iterate(c.self, c.meter) : Items()) {
    c.meter.step();
    Value value = kByAttribute ? attribute_of(item, c.given.positional[0], c.meter) : item;
    if (c.given.positional.size() > first) value = call_named(c, first, find_test, value);
    if (truthy(value) == kWanted) out.push_back(item);
  }
  return Value::list(std::move(out), Origin::kGenerator);
}

Value join(const Call& c) {
  const std::string separator = to_text(c[0], c.meter);
  std::string out;
  bool first = true;
  for (const Value& item : iterate(c.self, c.meter)) {
    c.meter.make(separator.size() + 1);
    if (!std::exchange(first, false)) out += separator;
    out += to_text(attribute_of(item, c[1], c.meter), c.meter);
  }
  return Value::string(std::move(out));
}

Value tojson(const Call& c) {
  JsonStyle style;
  style.ensure_ascii = truthy(c[0]);
  const Value &indent = c[1], &separators = c[2];
  if (!indent.is_missing()) {
    if (!indent.is_integer() || indent.as_integer() < 0 || indent.as_integer() > 100)
      fail_unsupported("tojson with such an indent");
    style.indent = static_cast<int>(indent.as_integer());
    style.item_separator = ",";
  }
  if (separators.is(Kind::kList)) {
    if (separators.items().size() != 2) fail_runtime("tojson: separators must be two strings");
    style.item_separator = to_text(separators.items()[0], c.meter);
    style.key_separator = to_text(separators.items()[1], c.meter);
  }
  return Value::string(to_json(c.self, style, c.meter));
}

template <bool kLast>
Value end_of(const Call& c) {
  if (c.self.is(Kind::kString)) return get_item(c.self, Value::integer(kLast ? -1 : 0), c.meter);
  if (kLast && c.self.is(Origin::kGenerator)) fail_runtime("'generator' object is not reversible");
  const Items items = iterate(c.self, c.meter);
  if (items.empty()) return Value::undefined("No first or last item, sequence was empty.");
  return kLast ? items.back() : items.front();
}

Value to_integer(const Call& c) {
  if (c.self.is_integer()) return Value::integer(c.self.as_integer());
  if (c.self.is(Kind::kFloat) && std::abs(c.self.as_number()) < 9e15)
    return Value::integer(static_cast<int64_t>(c.self.as_number()));
  fail_unsupported("the filter 'int' of a " + type_name(c.self));
}

Value or_default(const Call& c) {
  const bool missing = c.self.is(Kind::kUndefined) || (truthy(c[1]) && !truthy(c.self));
  if (!missing) return c.self;
  return c.given.positional.empty() && c[0].is(Kind::kUndefined) ? Value::string("") : c[0];
}

Value to_string(const Call& c) {
  return c.self.is_markup() ? c.self : Value::string(to_text(c.self, c.meter));
}

constexpr Builtin kFilters[] = {
    {"capitalize", change_text<capitalize>},
    {"count", length},
    {"d", or_default, 0, 2, {"default_value", "boolean"}},
    {"default", or_default, 0, 2, {"default_value", "boolean"}},
    {"dictsort", dictsort, 0, 3, {"case_sensitive", "by", "reverse"}},
    {"first", end_of<false>},
    {"int", to_integer},
    {"items", items},
    {"join", join, 0, 2, {"d", "attribute"}},
    {"last", end_of<true>},
    {"length", length},
    {"list", [](const Call& c) { return Value::list(iterate(c.self, c.meter)); }},
    {"lower", change_text<lower>},
    {"map", map, 0, -1},
    {"reject", select<false, false>, 0, -1},
    {"rejectattr", select<false, true>, 0, -1},
    {"replace", replace_text, 2, 2, {"old", "new"}},
    {"safe", [](const Call& c) { return Value::markup(to_text(c.self, c.meter)); }},
    {"select", select<true, false>, 0, -1},
    {"selectattr", select<true, true>, 0, -1},
    {"sort", sort, 0, 3, {"reverse", "case_sensitive", "attribute"}},
    {"string", to_string},
    {"title", change_text<title_of_words>},
    {"tojson", tojson, 0, 3, {"ensure_ascii", "indent", "separators"}},
    {"trim", strip_text<true, true>, 0, 1, {"chars"}},
    {"upper", change_text<upper>},
};

}  // namespace

const Builtin* find_filter(std::string_view name) { return find_row(kFilters, name); }

}  // namespace bicached::jinja
