#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "text/jinja/runtime.h"
#include "text/utf8.h"

namespace bicached::jinja {
namespace {

using Filter = Value (*)(const Value& input, const Arguments&, Meter&);

std::string text_input(const Value& v) {
  if (v.is_markup()) fail_unsupported("a filter after e or safe");
  return to_text(v);
}

int64_t length_of(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined: return 0;
    case Kind::kString: return static_cast<int64_t>(count_code_points(v.text()));
    case Kind::kDict: return static_cast<int64_t>(v.members().size());
    case Kind::kList:
    case Kind::kTuple:
      if (v.origin() != ListOrigin::kGenerator) return static_cast<int64_t>(v.items().size());
      [[fallthrough]];
    default: fail_runtime("object of type '" + type_name(v) + "' has no len()");
  }
}

/// Follows `a.b.0` as Jinja's filters do for their `attribute`.
Value attribute_of(const Value& item, const Value& path, Meter& meter) {
  if (path.is_integer()) return get_item(item, path, meter);
  if (!path.is(Kind::kString)) fail_runtime("attribute must be a string or an integer");
  Value value = item;
  for (size_t begin = 0; begin <= path.text().size();) {
    const size_t end = std::min(path.text().find('.', begin), path.text().size());
    const std::string part = path.text().substr(begin, end - begin);
    const bool number =
        !part.empty() && part.size() < 10 &&
        std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    value = get_item(value, number ? Value::integer(std::stoll(part)) : Value::string(part), meter);
    begin = end + 1;
  }
  return value;
}

Value folded(const Value& v, bool case_sensitive) {
  return v.is(Kind::kString) && !case_sensitive ? Value::string(lower(v.text())) : v;
}

bool flag(const Arguments& a, size_t index, const char* name) {
  return truthy(a.get(index, name, Value::boolean(false)));
}

Items sorted(Items items, const Value& attribute, bool case_sensitive, bool reverse, Meter& meter) {
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items) {
    Value key = attribute.is(Kind::kNone) ? item : attribute_of(item, attribute, meter);
    keyed.emplace_back(folded(key, case_sensitive), std::move(item));
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& x, const auto& y) {
    meter.step();
    return reverse ? less(y.first, x.first) : less(x.first, y.first);
  });
  Items out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return out;
}

Value sort_filter(const Value& v, const Arguments& a, Meter& meter) {
  a.check("sort", 3, {"reverse", "case_sensitive", "attribute"});
  return Value::list(sorted(iterate(v), a.get(2, "attribute", Value::none()),
                            flag(a, 1, "case_sensitive"), flag(a, 0, "reverse"), meter));
}

Value dictsort_filter(const Value& v, const Arguments& a, Meter& meter) {
  a.check("dictsort", 3, {"case_sensitive", "by", "reverse"});
  if (!v.is(Kind::kDict)) fail_runtime("dictsort needs a dict");
  const Value by = a.get(1, "by", Value::string("key"));
  Items pairs;
  for (const auto& [key, value] : v.members()) pairs.push_back(Value::tuple({key, value}));
  const bool by_value = by.is(Kind::kString) && by.text() == "value";
  return Value::list(sorted(std::move(pairs), Value::integer(by_value ? 1 : 0),
                            flag(a, 0, "case_sensitive"), flag(a, 2, "reverse"), meter));
}

Value groupby_filter(const Value& v, const Arguments& a, Meter& meter) {
  a.check("groupby", 1, {"attribute"});
  const Value attribute = a.get(0, "attribute", Value());
  Items groups;
  Items members;
  Value key, shown;
  const auto close = [&] {
    if (!members.empty())
      groups.push_back(Value::tuple({shown, Value::list(std::move(members))}, ListOrigin::kGroup));
    members.clear();
  };
  for (const Value& item : sorted(iterate(v), attribute, false, false, meter)) {
    const Value next = attribute_of(item, attribute, meter);
    if (members.empty() || !equal(folded(next, false), key)) {
      close();
      key = folded(next, false), shown = next;
    }
    members.push_back(item);
  }
  close();
  return Value::list(std::move(groups));
}

Value unique_filter(const Value& v, const Arguments& a, Meter& meter) {
  a.check("unique", 2, {"case_sensitive", "attribute"});
  const Value attribute = a.get(1, "attribute", Value::none());
  Items out, keys;
  for (const Value& item : iterate(v)) {
    const Value key =
        folded(attribute.is(Kind::kNone) ? item : attribute_of(item, attribute, meter),
               flag(a, 0, "case_sensitive"));
    const bool seen = std::any_of(keys.begin(), keys.end(), [&](const Value& k) {
      meter.step();
      return equal(k, key);
    });
    if (seen) continue;
    keys.push_back(key);
    out.push_back(item);
  }
  return Value::list(std::move(out), ListOrigin::kGenerator);
}

Arguments rest_of(const Arguments& a, size_t from) {
  Arguments rest;
  for (size_t i = from; i < a.positional.size(); ++i) rest.positional.push_back(a.positional[i]);
  rest.named = a.named;
  return rest;
}

const std::string& name_argument(const Arguments& a, size_t index, const char* function) {
  if (index >= a.positional.size() || !a.positional[index].is(Kind::kString)) {
    fail_runtime(std::string(function) + " needs the name of a filter, test or attribute");
  }
  return a.positional[index].text();
}

Value map_filter(const Value& v, const Arguments& a, Meter& meter) {
  Items out;
  const Items items = iterate(v);
  if (a.positional.empty()) {
    a.check("map", 0, {"attribute", "default"});
    const Value* attribute = a.find(0, "attribute");
    const Value* otherwise = a.find(1, "default");
    if (!attribute) fail_runtime("map requires a filter argument");
    for (const Value& item : items) {
      Value value = attribute_of(item, *attribute, meter);
      if (value.is(Kind::kUndefined) && otherwise) value = *otherwise;
      out.push_back(std::move(value));
    }
  } else {
    const std::string& name = name_argument(a, 0, "map");
    if (!is_known_filter(name)) fail_runtime("No filter named '" + name + "'.");
    for (const Value& item : items) out.push_back(call_filter(name, item, rest_of(a, 1), meter));
  }
  return Value::list(std::move(out), ListOrigin::kGenerator);
}

template <bool kWanted, bool kByAttribute>
Value select_filter(const Value& v, const Arguments& a, Meter& meter) {
  const size_t first = kByAttribute ? 1 : 0;
  if (kByAttribute && a.positional.empty()) fail_runtime("selectattr needs an attribute");
  Items out;
  for (const Value& item : iterate(v)) {
    meter.step();
    const Value value = kByAttribute ? attribute_of(item, a.positional[0], meter) : item;
    bool holds = truthy(value);
    if (a.positional.size() > first) {
      const std::string& name = name_argument(a, first, "select");
      if (!is_known_test(name)) fail_runtime("No test named '" + name + "'.");
      holds = call_test(name, value, rest_of(a, first + 1));
    }
    if (holds == kWanted) out.push_back(item);
  }
  return Value::list(std::move(out), ListOrigin::kGenerator);
}

Value join_filter(const Value& v, const Arguments& a, Meter& meter) {
  a.check("join", 2, {"d", "attribute"});
  const std::string separator = to_text(a.get(0, "d", Value::string("")));
  const Value attribute = a.get(1, "attribute", Value::none());
  std::string out;
  bool first = true;
  for (const Value& item : iterate(v)) {
    const Value value = attribute.is(Kind::kNone) ? item : attribute_of(item, attribute, meter);
    if (!first) out += separator;
    first = false;
    out += text_input(value);
    meter.charge(separator.size() + rough_bytes(value) + 1);
  }
  return Value::string(std::move(out));
}

Value batch_filter(const Value& v, const Arguments& a, Meter&) {
  a.check("batch", 2, {"linecount", "fill_with"});
  const Value count = a.get(0, "linecount", Value());
  if (!count.is_integer() || count.as_integer() < 1) fail_runtime("batch needs a positive number");
  const Value fill = a.get(1, "fill_with", Value::none());
  if (!fill.is(Kind::kNone)) fail_unsupported("batch with fill_with");
  Items out, line;
  for (Value& item : iterate(v)) {
    line.push_back(std::move(item));
    if (static_cast<int64_t>(line.size()) == count.as_integer())
      out.push_back(Value::list(std::exchange(line, {})));
  }
  if (!line.empty()) out.push_back(Value::list(std::move(line)));
  return Value::list(std::move(out), ListOrigin::kGenerator);
}

Value indent_filter(const Value& v, const Arguments& a, Meter& meter) {
  a.check("indent", 3, {"width", "first", "blank"});
  const Value width = a.get(0, "width", Value::integer(4));
  if (!width.is(Kind::kString) && !width.is_integer()) fail_runtime("indent needs a width");
  if (width.is_integer() && (width.as_integer() < 0 || width.as_integer() > 1000))
    fail_unsupported("such an indent");
  const std::string margin = width.is(Kind::kString)
                                 ? width.text()
                                 : std::string(static_cast<size_t>(width.as_integer()), ' ');
  const bool blank = flag(a, 2, "blank");
  std::string out = flag(a, 1, "first") ? margin : "";
  bool first = true;
  for (const std::string& line : split_lines(text_input(v) + "\n")) {
    meter.charge(margin.size() + line.size());
    if (!first) out += '\n' + (line.empty() && !blank ? "" : margin);
    first = false;
    out += line;
  }
  return Value::string(std::move(out));
}

Value title_filter(const Value& v, const Arguments& a, Meter&) {
  a.check("title", 0);
  std::string out;
  std::string word;
  const auto flush = [&] { out += capitalize(word), word.clear(); };
  const std::string text = text_input(v);
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = next_code_point(text, pos);
    const std::string one = text.substr(begin, pos - begin);
    if (is_white_space(c) || (c >= 0x1C && c <= 0x1F) || c == '-' || c == '(' || c == '{' ||
        c == '[' || c == '<') {
      flush();
      out += one;
    } else {
      if (word.empty() && upper(one) != capitalize(one))
        fail_unsupported("the title case of such a letter");
      word += one;
    }
  }
  flush();
  return Value::string(std::move(out));
}

Value wordcount_filter(const Value& v, const Arguments& a, Meter&) {
  a.check("wordcount", 0);
  int64_t count = 0;
  bool inside = false;
  const std::string text = text_input(v);
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = next_code_point(text, pos);
    if (c >= 0x300 && c <= 0x36F) {  // marks are no word characters of Python's re
      inside = false;
      continue;
    }
    const bool word = is_word_character(c) && c != 0x200C && c != 0x200D;
    count += word && !inside;
    inside = word;
  }
  return Value::integer(count);
}

Value escape_filter(const Value& v, const Arguments& a, Meter&) {
  a.check("escape", 0);
  if (v.is_markup()) return v;
  std::string out;
  for (const char c : to_text(v)) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&#34;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return Value::markup(std::move(out));
}

Value tojson_filter(const Value& v, const Arguments& a, Meter& meter) {
  a.check("tojson", 4, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = flag(a, 0, "ensure_ascii");
  const Value indent = a.get(1, "indent", Value::none());
  if (!indent.is(Kind::kNone)) {
    if (!indent.is_integer() || indent.as_integer() < 0 || indent.as_integer() > 100)
      fail_unsupported("tojson with such an indent");
    style.indent = static_cast<int>(indent.as_integer());
    style.item_separator = ",";
  }
  const Value separators = a.get(2, "separators", Value::none());
  if (!separators.is(Kind::kNone)) {
    if (!separators.is_sequence() || separators.items().size() != 2 ||
        !separators.items()[0].is(Kind::kString) || !separators.items()[1].is(Kind::kString)) {
      fail_runtime("tojson: separators must be two strings");
    }
    style.item_separator = separators.items()[0].text();
    style.key_separator = separators.items()[1].text();
  }
  style.sort_keys = flag(a, 3, "sort_keys");
  std::string out = to_json(v, style);
  meter.charge(out.size());
  return Value::string(std::move(out));
}

Value end_filter(const Value& v, bool last) {
  if (v.is(Kind::kString) && !v.text().empty()) {
    const Value none = Value::none();
    return last ? slice(v, Value::integer(-1), none, none)
                : slice(v, Value::integer(0), Value::integer(1), none);
  }
  if (last && v.is(Kind::kList) && v.origin() == ListOrigin::kGenerator)
    fail_runtime("a generator is not reversible");
  const Items items = iterate(v);
  if (items.empty())
    return Value::undefined(last ? "No last item, sequence was empty."
                                 : "No first item, sequence was empty.");
  return last ? items.back() : items.front();
}

Value number_filter(const Value& v, bool integer) {
  if (v.is(Kind::kString)) fail_unsupported("reading a number from text");
  if (!v.is_number()) fail_unsupported("the number of a " + type_name(v));
  if (!integer) return Value::number(v.as_number());
  if (v.is(Kind::kFloat) && !(std::abs(v.as_number()) < 9e15)) fail_unsupported("such an integer");
  return v.is(Kind::kFloat) ? Value::integer(static_cast<int64_t>(v.as_number()))
                            : Value::integer(v.as_integer());
}

Value sum_filter(const Value& v, const Arguments& a, Meter& meter) {
  a.check("sum", 2, {"attribute", "start"});
  const Value attribute = a.get(0, "attribute", Value::none());
  Value total = a.get(1, "start", Value::integer(0));
  for (const Value& item : iterate(v)) {
    total = binary("+", total,
                   attribute.is(Kind::kNone) ? item : attribute_of(item, attribute, meter), meter);
  }
  return total;
}

Value reverse_filter(const Value& v, const Arguments& a, Meter&) {
  a.check("reverse", 0);
  if (v.is(Kind::kString)) return slice(v, Value::none(), Value::none(), Value::integer(-1));
  Items items = iterate(v);
  std::reverse(items.begin(), items.end());
  return Value::list(std::move(items), ListOrigin::kGenerator);
}

Value default_filter(const Value& v, const Arguments& a, Meter&) {
  a.check("default", 2, {"default_value", "boolean"});
  const bool missing = v.is(Kind::kUndefined) || (flag(a, 1, "boolean") && !truthy(v));
  return missing ? a.get(0, "default_value", Value::string("")) : v;
}

Value replace_filter(const Value& v, const Arguments& a, Meter& meter) {
  a.check("replace", 3, {"old", "new", "count"});
  const Value count = a.get(2, "count", Value::none());
  if (!count.is(Kind::kNone) && !count.is_integer())
    fail_runtime("replace: count must be an integer");
  return Value::string(replace(text_input(v), to_text(a.get(0, "old", Value())),
                               to_text(a.get(1, "new", Value())),
                               count.is(Kind::kNone) ? -1 : count.as_integer(), meter));
}

Value items_filter(const Value& v, const Arguments& a, Meter&) {
  a.check("items", 0);
  if (v.is(Kind::kUndefined)) return Value::list({}, ListOrigin::kGenerator);
  if (!v.is(Kind::kDict)) fail_runtime("Can only get item pairs from a mapping.");
  Items items;
  for (const auto& [key, value] : v.members()) items.push_back(Value::tuple({key, value}));
  return Value::list(std::move(items), ListOrigin::kGenerator);
}

const std::unordered_map<std::string_view, Filter>& filters() {
  static const std::unordered_map<std::string_view, Filter> table = {
      {"trim",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("trim", 1, {"chars"});
         return Value::string(strip(text_input(v), a.get(0, "chars", Value::none()), true, true));
       }},
      {"upper",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("upper", 0);
         return Value::string(upper(text_input(v)));
       }},
      {"lower",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("lower", 0);
         return Value::string(lower(text_input(v)));
       }},
      {"capitalize",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("capitalize", 0);
         return Value::string(capitalize(text_input(v)));
       }},
      {"title", title_filter},
      {"length",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("length", 0);
         return Value::integer(length_of(v));
       }},
      {"count",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("count", 0);
         return Value::integer(length_of(v));
       }},
      {"replace", replace_filter},
      {"first",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("first", 0);
         return end_filter(v, false);
       }},
      {"last",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("last", 0);
         return end_filter(v, true);
       }},
      {"string",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("string", 0);
         return v.is(Kind::kString) ? v : Value::string(to_text(v));
       }},
      {"indent", indent_filter},
      {"wordcount", wordcount_filter},
      {"format",
       [](const Value& v, const Arguments& a, Meter&) {
         if (!a.named.empty()) fail_unsupported("format with names");
         return Value::string(percent_format(text_input(v), a.positional));
       }},
      {"join", join_filter},
      {"map", map_filter},
      {"select", select_filter<true, false>},
      {"reject", select_filter<false, false>},
      {"selectattr", select_filter<true, true>},
      {"rejectattr", select_filter<false, true>},
      {"list",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("list", 0);
         return Value::list(iterate(v));
       }},
      {"sort", sort_filter},
      {"unique", unique_filter},
      {"sum", sum_filter},
      {"dictsort", dictsort_filter},
      {"groupby", groupby_filter},
      {"items", items_filter},
      {"default", default_filter},
      {"d", default_filter},
      {"reverse", reverse_filter},
      {"batch", batch_filter},
      {"tojson", tojson_filter},
      {"e", escape_filter},
      {"escape", escape_filter},
      {"safe",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("safe", 0);
         return Value::markup(to_text(v));
       }},
      {"int",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("int", 0);
         return number_filter(v, true);
       }},
      {"float",
       [](const Value& v, const Arguments& a, Meter&) {
         a.check("float", 0);
         return number_filter(v, false);
       }},
      {"abs",
       [](const Value& v, const Arguments& a, Meter& m) {
         a.check("abs", 0);
         return v.as_number() < 0 ? binary("*", v, Value::integer(-1), m) : v;
       }},
      {"attr", [](const Value& v, const Arguments& a,
                  Meter& m) { return get_attribute(v, name_argument(a, 0, "attr"), m); }},
  };
  return table;
}

// Jinja's filters and tests beyond these: named in the refusal instead of "no such filter".
constexpr std::string_view kOtherFilters[] = {
    "center", "filesizeformat", "forceescape", "max",       "min",    "pprint",   "random", "round",
    "slice",  "striptags",      "truncate",    "urlencode", "urlize", "wordwrap", "xmlattr"};
constexpr std::string_view kTests[] = {
    "defined",     "undefined", "none",     "string", "number",      "integer",  "float", "boolean",
    "mapping",     "sequence",  "iterable", "true",   "false",       "callable", "odd",   "even",
    "divisibleby", "lower",     "upper",    "eq",     "equalto",     "==",       "ne",    "!=",
    "lt",          "lessthan",  "<",        "gt",     "greaterthan", ">",        "ge",    ">=",
    "le",          "<=",        "in",       "filter", "test"};
constexpr std::string_view kOtherTests[] = {"escaped", "sameas"};

template <size_t N>
bool is_one_of(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool type_test(const std::string& name, const Value& v) {
  if (name == "defined") return !v.is(Kind::kUndefined);
  if (name == "undefined") return v.is(Kind::kUndefined);
  if (name == "none") return v.is(Kind::kNone);
  if (name == "string") return v.is(Kind::kString);
  if (name == "number") return v.is_number() || v.is(Kind::kBigInt);
  if (name == "integer") return v.is(Kind::kInt) || v.is(Kind::kBigInt);
  if (name == "float") return v.is(Kind::kFloat);
  if (name == "boolean") return v.is(Kind::kBool);
  if (name == "mapping") return v.is(Kind::kDict);
  if (name == "true") return v.is(Kind::kBool) && v.as_integer();
  if (name == "false") return v.is(Kind::kBool) && !v.as_integer();
  if (name == "callable") return v.is(Kind::kCallable) || v.is(Kind::kLoop);
  if (v.is_sequence() && v.origin() != ListOrigin::kList && v.origin() != ListOrigin::kGroup &&
      name == "sequence") {
    fail_unsupported("'is sequence' of a generator, view or range");
  }
  return v.is_sequence() || v.is(Kind::kString) || v.is(Kind::kDict) ||
         v.is(Kind::kUndefined);  // sequence, iterable
}

bool compare_test(const std::string& name, const Value& v, const Arguments& a) {
  a.check(name, 1);
  if (a.positional.empty()) fail_runtime("the test " + name + " needs a value");
  const Value& other = a.positional[0];
  if (name == "eq" || name == "equalto" || name == "==") return equal(v, other);
  if (name == "ne" || name == "!=") return !equal(v, other);
  if (name == "lt" || name == "lessthan" || name == "<") return less(v, other);
  if (name == "gt" || name == "greaterthan" || name == ">") return less(other, v);
  if (name == "ge" || name == ">=") return !less(v, other);
  if (name == "le" || name == "<=") return !less(other, v);
  if (name == "in") return contains(other, v);
  if (!v.is_integer() || !other.is_integer() || other.as_integer() == 0)
    fail_runtime("divisibleby needs integers, and not 0");
  return other.as_integer() == -1 || v.as_integer() % other.as_integer() == 0;
}

}  // namespace

bool is_known_filter(std::string_view name) {
  if (is_one_of(kOtherFilters, name)) fail_unsupported("the filter " + std::string(name));
  return filters().count(name) > 0;
}

bool is_known_test(std::string_view name) {
  if (is_one_of(kOtherTests, name)) fail_unsupported("the test " + std::string(name));
  return is_one_of(kTests, name);
}

Value call_filter(const std::string& name, const Value& input, const Arguments& arguments,
                  Meter& meter) {
  meter.step();
  meter.charge(rough_bytes(input));
  return filters().at(name)(input, arguments, meter);
}

bool call_test(const std::string& name, const Value& v, const Arguments& a) {
  if (name == "odd" || name == "even") {
    if (!v.is_integer()) fail_unsupported("odd and even of a " + type_name(v));
    return (v.as_integer() % 2 != 0) == (name == "odd");
  }
  if (name == "lower" || name == "upper") {
    const std::string text = to_text(v);
    const std::string same = name == "lower" ? lower(text) : upper(text);
    return same == text && lower(text) != upper(text);  // there must be a letter with case
  }
  if (name == "filter" || name == "test") fail_unsupported("the test " + name);
  constexpr std::string_view kCompare[] = {
      "eq",          "equalto", "==", "ne", "!=", "lt", "lessthan", "<",          "gt",
      "greaterthan", ">",       "ge", ">=", "le", "<=", "in",       "divisibleby"};
  if (is_one_of(kCompare, name)) return compare_test(name, v, a);
  a.check(name, 0);
  return type_test(name, v);
}

}  // namespace bicached::jinja
