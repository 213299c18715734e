// Filters, tests, methods and global functions: rows of a table, and how a row is called.
#include <algorithm>
#include <cmath>
#include <iomanip>
#include <sstream>

#include "base/utf8.h"
#include "text/jinja/run.h"

namespace bicached::jinja {
namespace {

const std::string& text_argument(const Call& c, size_t index) {
  if (!c[index].is(kString)) refuse("an argument that is no str but a " + type_name(c[index]));
  return c[index].text();
}

// --- texts: filters and methods

std::string text_input(const Call& c) {
  if (c.self.is_markup()) refuse("a filter of text behind safe");
  return to_text(c.self, c.meter);
}

template <Case kCase>
Value change_text(const Call& c) {
  return Value::string(in_case(kCase, text_input(c)));
}

template <Side kSide>
Value strip_text(const Call& c) {
  return Value::string(std::string(strip(text_input(c), c[0], kSide)));
}

/// A text's parts between separators, of which so many count, all if absent.
Items parts_of(const std::string& text, const std::string& separator, const Value& count,
               Meter& meter) {
  if (!count.is_integer() && !count.is(kUndefined)) fail_runtime("a count must be an integer");
  int64_t left = count.is_integer() ? count.as_integer() : -1;
  Items parts;
  size_t begin = 0, end = 0;
  do {
    end = left-- == 0 ? text.size() : std::min(text.find(separator, begin), text.size());
    parts.push_back(meter.made(Value::string(text.substr(begin, end - begin))));
    begin = end + separator.size();
  } while (end != text.size());
  return parts;
}

std::string joined(const Items& parts, const std::string& separator, Meter& meter) {
  std::string out;
  for (size_t i = 0; i < parts.size(); ++i) {
    meter.make(separator.size() + 1);
    if (i > 0) out += separator;
    out += to_text(parts[i], meter);
  }
  return out;
}

Value split(const Call& c) {
  if (c[0].is_missing()) refuse("the method 'split' without a separator");
  if (text_argument(c, 0).empty()) fail_runtime("empty separator");
  return Value::list(parts_of(c.self.text(), text_argument(c, 0), c[1], c.meter));
}

Value replace(const Call& c) {
  if (text_argument(c, 0).empty()) refuse("replacing an empty text");
  const Items parts = parts_of(text_input(c), text_argument(c, 0), c[2], c.meter);
  return Value::string(joined(parts, text_argument(c, 1), c.meter));
}

template <bool kStart>
Value has_affix(const Call& c) {
  const std::string &text = c.self.text(), &affix = text_argument(c, 0);
  return Value::boolean(kStart ? text.starts_with(affix) : text.ends_with(affix));
}

// --- lists and dicts: filters and methods

/// A dict's keys, its values, or both as pairs.
template <Kind kKind, bool kKeys, bool kValues>
Value entries(const Call& c) {
  Items out;
  for (const auto& [key, value] : c.self.members()) {
    out.push_back(!kValues ? key : !kKeys ? value : Value::list({key, value}, kTuple));
  }
  return Value::list(std::move(out), kKind);
}

Value get(const Call& c) {
  const Value* found = find_member(c.self.members(), c[0], c.meter);
  return found ? *found : c.given.size() > 1 ? c[1] : Value::none();
}

/// What `attribute` of a filter names; none: the item itself.
Value attribute_of(const Value& item, const Value& name, Meter& meter) {
  if (name.is_missing()) return item;
  if (name.is(kString) && name.text().find('.') != std::string::npos)
    refuse("the attribute '" + name.text() + "' of a filter");
  return get_item(item, name, meter);
}

Value length(const Call& c) {
  if (c.self.is(kUndefined)) return Value::integer(0);
  if (c.self.is(kString)) return Value::integer(count_code_points(c.self.text()));
  if (c.self.is(kDict)) return Value::integer(c.self.members().size());
  if (!c.self.has_items() || c.self.is(kGenerator))
    fail_runtime("length of a " + type_name(c.self));
  return Value::integer(c.self.items().size());
}

Value sorted(Items items, const Value& attribute, const Value& case_sensitive, const Value& reverse,
             Meter& meter) {
  const auto key_of = [&](const Value& item) {
    const Value key = attribute_of(item, attribute, meter);
    const bool folds = key.is(kString) && !truthy(case_sensitive);
    return folds ? meter.made(Value::string(in_case(Case::kLower, key.text()))) : key;
  };
  std::ranges::stable_sort(items, [&](const Value& x, const Value& y) {
    return less(key_of(truthy(reverse) ? y : x), key_of(truthy(reverse) ? x : y), meter);
  });
  return Value::list(std::move(items));
}

Value sort(const Call& c) { return sorted(iterate(c.self, c.meter), c[2], c[1], c[0], c.meter); }

Value dictsort(const Call& c) {
  if (!c.self.is(kDict)) fail_runtime("dictsort needs a dict");
  const bool by_value = c[1].is(kString) && c[1].text() == "value";
  return sorted(entries<kList, true, true>(c).items(), Value::integer(by_value), c[0], c[2],
                c.meter);
}

Value items(const Call& c) {
  if (c.self.is(kUndefined)) return Value::list({}, kGenerator);
  if (!c.self.is(kDict)) fail_runtime("Can only get item pairs from a mapping.");
  return entries<kGenerator, true, true>(c);
}

/// The filter or test whose name stands at `index` of a filter's arguments, with those behind it.
Value call_named(const Call& c, size_t index, Use use, const Value& self) {
  const Value& name = c.given[index].second;
  const Builtin* builtin = name.is(kString) ? find_builtin(use, name.text()) : nullptr;
  if (!builtin) refuse("a filter or test like " + to_text(name, c.meter));
  const auto begin = c.given.begin() + static_cast<std::ptrdiff_t>(index) + 1;
  return call(*builtin, self, {begin, c.given.end()}, c.meter);
}

/// What map and select go through.
Items inputs(const Call& c) { return truthy(c.self) ? iterate(c.self, c.meter) : Items(); }

Value map(const Call& c) {
  const Value* attribute = find_name(c.given, "attribute");
  if (attribute ? c.given.size() > 1 : c.given.empty())
    refuse("the filter 'map' with such arguments");
  Items out;
  for (const Value& item : inputs(c)) {
    out.push_back(attribute ? attribute_of(item, *attribute, c.meter)
                            : call_named(c, 0, kFilter, item));
  }
  return Value::list(std::move(out), kGenerator);
}

template <bool kWanted, bool kByAttribute>
Value select(const Call& c) {
  if (kByAttribute && c.given.empty()) fail_runtime("the attribute's name is missing");
  Items out;
  for (const Value& item : inputs(c)) {
    c.meter.step();
    Value value = kByAttribute ? attribute_of(item, c.given[0].second, c.meter) : item;
    if (c.given.size() > kByAttribute) value = call_named(c, kByAttribute, kTest, value);
    if (truthy(value) == kWanted) out.push_back(item);
  }
  return Value::list(std::move(out), kGenerator);
}

Value join(const Call& c) {
  Items parts = iterate(c.self, c.meter);
  for (Value& part : parts) part = attribute_of(part, c[1], c.meter);
  return Value::string(joined(parts, to_text(c[0], c.meter), c.meter));
}

Value tojson(const Call& c) {
  Style style;
  style.ensure_ascii = truthy(c[0]);
  if (!c[1].is_missing()) {
    const int64_t indent = c[1].is_integer() ? c[1].as_integer() : -1;
    if (indent < 0 || indent > 100) refuse("tojson with such an indent");
    style.indent = static_cast<int>(indent);
    style.item_separator = ",";
  }
  if (!c[2].is_missing()) {
    const Items separators = c[2].has_items() ? c[2].items() : Items();
    if (separators.size() != 2) refuse("tojson with such separators");
    style.item_separator = to_text(separators[0], c.meter);
    style.key_separator = to_text(separators[1], c.meter);
  }
  return Value::string(written(c.self, style, c.meter));
}

template <int kIndex>
Value item_at(const Call& c) {
  if (kIndex < 0 && c.self.is(kGenerator)) fail_runtime("the last item of a generator");
  const bool is_text = c.self.is(kString);
  const Value items = is_text ? c.self : Value::list(iterate(c.self, c.meter));
  return get_item(items, Value::integer(kIndex), c.meter);
}

Value to_integer(const Call& c) {
  if (c.self.is_integer()) return Value::integer(c.self.as_integer());
  const bool fits = c.self.is(kFloat) && std::abs(c.self.as_number()) < 9e15;
  if (!fits) refuse("the filter 'int' of a " + type_name(c.self));
  return Value::integer(static_cast<int64_t>(c.self.as_number()));
}

Value or_default(const Call& c) {
  if (truthy(c.self) || !(truthy(c[1]) || c.self.is(kUndefined))) return c.self;
  const bool has_default = !c.given.empty() && c.given[0].first.is(kUndefined);
  return has_default || !c[0].is(kUndefined) ? c[0] : Value::string("");
}

Value to_string(const Call& c) {
  return c.self.is_markup() ? c.self : Value::string(to_text(c.self, c.meter));
}

template <Kind... kKinds>
Value is_one_of(const Call& c) {
  return Value::boolean((c.self.is(kKinds) || ...));
}
template <bool kWanted>
Value is_bool(const Call& c) {
  return Value::boolean(c.self.is(kBool) && c.self.as_integer() == kWanted);
}

// --- global functions

Value range(const Call& c) {
  for (const auto& [name, number] : c.given) {
    if (!number.is_integer()) fail_runtime("range of a " + type_name(number));
  }
  const bool only_stop = c.given.size() == 1;
  const int64_t start = only_stop ? 0 : c[0].as_integer(), stop = c[only_stop ? 0 : 1].as_integer();
  const int64_t step = c[2].is_integer() ? c[2].as_integer() : 1;
  if (step == 0) fail_runtime("range() arg 3 must not be zero");
  const double count = std::ceil((static_cast<double>(stop) - static_cast<double>(start)) /
                                 static_cast<double>(step));
  if (count > 100000) fail_runtime("a range of more than 100000, which Jinja's sandbox forbids");
  Items items;
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i)
    items.push_back(Value::integer(start + i * step));
  return Value::list(std::move(items), kRange);
}

template <Kind kKind>
Value dict(const Call& c) {
  Members members;
  for (const auto& [name, value] : c.given) {
    if (name.is(kString)) {
      set_name(members, name, value);
    } else if (value.is(kDict) && members.empty()) {
      members = value.members();
    } else {
      refuse("dict or namespace of a " + type_name(value));
    }
  }
  return Value::dict(std::move(members), kKind);
}

Value raise_exception(const Call& c) { fail(Failure::kRaised, to_text(c[0], c.meter)); }

Value strftime_now(const Call& c) {
  constexpr std::string_view kKnown = "aAbBcdeFHIjmMpSTuUwWxXyY%";
  const std::string& format = text_argument(c, 0);
  for (size_t i = format.find('%'); i != std::string::npos; i = format.find('%', i + 2)) {
    if (i + 1 == format.size() || kKnown.find(format[i + 1]) == std::string_view::npos)
      refuse("the time format \"" + format + "\"");
  }
  std::tm now{};
  const std::time_t seconds = std::time(nullptr);
  localtime_r(&seconds, &now);
  if (c.meter.options.now) now = *c.meter.options.now;
  std::ostringstream out;
  out << std::put_time(&now, format.c_str());
  return Value::string(out.str());
}

constexpr Builtin kBuiltins[] = {
    {kFilter, "capitalize", change_text<Case::kCapitalized>},
    {kFilter, "count", length},
    {kFilter, "d", or_default, 0, 2, {"default_value", "boolean"}},
    {kFilter, "default", or_default, 0, 2, {"default_value", "boolean"}},
    {kFilter, "dictsort", dictsort, 0, 3, {"case_sensitive", "by", "reverse"}},
    {kFilter, "first", item_at<0>},
    {kFilter, "int", to_integer},
    {kFilter, "items", items},
    {kFilter, "join", join, 0, 2, {"d", "attribute"}},
    {kFilter, "last", item_at<-1>},
    {kFilter, "length", length},
    {kFilter, "list", [](const Call& c) { return Value::list(iterate(c.self, c.meter)); }},
    {kFilter, "lower", change_text<Case::kLower>},
    {kFilter, "map", map, 0, kAny},
    {kFilter, "reject", select<false, false>, 0, kAny},
    {kFilter, "rejectattr", select<false, true>, 0, kAny},
    {kFilter, "replace", replace, 2, 2, {"old", "new"}},
    {kFilter, "safe", [](const Call& c) { return Value::markup(to_text(c.self, c.meter)); }},
    {kFilter, "select", select<true, false>, 0, kAny},
    {kFilter, "selectattr", select<true, true>, 0, kAny},
    {kFilter, "sort", sort, 0, 3, {"reverse", "case_sensitive", "attribute"}},
    {kFilter, "string", to_string},
    {kFilter, "title", change_text<Case::kTitleOfFilter>},
    {kFilter, "tojson", tojson, 0, 3, {"ensure_ascii", "indent", "separators"}},
    {kFilter, "trim", strip_text<Side::kBoth>, 0, 1, {"chars"}},
    {kFilter, "upper", change_text<Case::kUpper>},
    {kTest, "==", [](const Call& c) { return binary("==", c.self, c[0], c.meter); }, 1, 1},
    {kTest, "boolean", is_one_of<kBool>},
    {kTest, "defined", [](const Call& c) { return Value::boolean(!c.self.is(kUndefined)); }},
    {kTest, "eq", [](const Call& c) { return binary("==", c.self, c[0], c.meter); }, 1, 1},
    {kTest, "equalto", [](const Call& c) { return binary("==", c.self, c[0], c.meter); }, 1, 1},
    {kTest, "false", is_bool<false>},
    {kTest, "in", [](const Call& c) { return binary("in", c.self, c[0], c.meter); }, 1, 1},
    {kTest, "iterable",
     is_one_of<kUndefined, kString, kList, kTuple, kGenerator, kView, kRange, kDict>},
    {kTest, "mapping", is_one_of<kDict>},
    {kTest, "ne", [](const Call& c) { return binary("!=", c.self, c[0], c.meter); }, 1, 1},
    {kTest, "none", is_one_of<kNone>},
    {kTest, "number", is_one_of<kBool, kInt, kBigInt, kFloat>},
    {kTest, "sequence", is_one_of<kUndefined, kString, kList, kTuple, kRange, kDict>},
    {kTest, "string", is_one_of<kString>},
    {kTest, "true", is_bool<true>},
    {kTest, "undefined", is_one_of<kUndefined>},
    {kOfText, "capitalize", change_text<Case::kCapitalized>},
    {kOfText, "endswith", has_affix<false>, 1, 1},
    {kOfText, "lower", change_text<Case::kLower>},
    {kOfText, "lstrip", strip_text<Side::kLeft>, 0, 1},
    {kOfText, "replace", replace, 2, 3},
    {kOfText, "rstrip", strip_text<Side::kRight>, 0, 1},
    {kOfText, "split", split, 0, 2},
    {kOfText, "startswith", has_affix<true>, 1, 1},
    {kOfText, "strip", strip_text<Side::kBoth>, 0, 1},
    {kOfText, "title", change_text<Case::kTitleOfMethod>},
    {kOfText, "upper", change_text<Case::kUpper>},
    {kOfDict, "get", get, 1, 2},
    {kOfDict, "items", entries<kView, true, true>},
    {kOfDict, "keys", entries<kView, true, false>},
    {kOfDict, "values", entries<kView, false, true>},
    {kGlobal, "dict", dict<kDict>, 0, kAny},
    {kGlobal, "namespace", dict<kNamespace>, 0, kAny},
    {kGlobal, "raise_exception", raise_exception, 0, 1},
    {kGlobal, "range", range, 1, 3},
    {kGlobal, "strftime_now", strftime_now, 1, 1},
};
static_assert(std::ranges::is_sorted(kBuiltins, {}, &Builtin::use));

// Python's other methods and attributes: refused, since they are not merely absent.
constexpr std::string_view kOthersOfDict = " clear copy fromkeys pop popitem setdefault update ";
constexpr std::string_view kOthers =
    " append casefold center clear close copy count encode expandtabs extend find format "
    "format_map index insert isalnum isalpha isascii isdecimal isdigit isdisjoint isidentifier "
    "islower isnumeric isprintable isspace istitle isupper join ljust maketrans mapping partition "
    "pop remove removeprefix removesuffix reverse rfind rindex rjust rpartition rsplit send sort "
    "splitlines start step stop swapcase throw translate zfill ";

}  // namespace

Value call(const Builtin& builtin, const Value& self, const Arguments& given, Meter& meter) {
  meter.step();
  meter.charge(self);
  Call call{self, given, meter, {}};
  if (builtin.most == kAny) return meter.made(builtin.run(call));
  const std::string name(builtin.name);
  size_t num_by_place = 0;
  for (const auto& [key, value] : given) {
    const bool by_place = key.is(kUndefined);
    const auto* named = by_place ? nullptr : std::ranges::find(builtin.parameters, key.text());
    const size_t place = by_place ? num_by_place++ : named - builtin.parameters.begin();
    if (!by_place && place < num_by_place) fail_runtime(name + " got an argument twice");
    if (place >= builtin.most)
      refuse("the argument '" + to_text(by_place ? value : key, meter) + "' of " + name);
    call.args[place] = value;
  }
  if (given.size() < builtin.required) fail_runtime(name + " needs more arguments");
  return meter.made(builtin.run(call));
}

const Builtin* find_builtin(Use use, std::string_view name) {
  const auto rows = std::ranges::equal_range(kBuiltins, use, {}, &Builtin::use);
  const auto row = std::ranges::find(rows, name, &Builtin::name);
  return row == rows.end() ? nullptr : &*row;
}

const Builtin* find_method(const Value& object, std::string_view name) {
  const bool is_text = object.is(kString), is_dict = object.is(kDict);
  if (!is_text && !is_dict && !object.has_items()) return nullptr;
  const Builtin* found = find_builtin(is_text ? kOfText : is_dict ? kOfDict : kOfList, name);
  if (found && object.is_markup()) refuse("a method of text behind safe");
  const std::string_view others = is_dict ? kOthersOfDict : kOthers;
  if (!found && others.find(' ' + std::string(name) + ' ') != std::string::npos)
    refuse("the method '" + std::string(name) + "' of a " + type_name(object));
  return found;
}

Members global_functions(Meter& meter) {
  Members out;
  for (const Builtin& row : kBuiltins) {
    const auto function = [&](const Arguments& given) { return call(row, Value(), given, meter); };
    const Value name = Value::string(std::string(row.name));
    if (row.use == kGlobal) out.emplace_back(name, Value::callable(function));
  }
  return out;
}

}  // namespace bicached::jinja
