#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "jinja/read_json.h"
#include "text/jinja/template.h"

namespace bicached::jinja {
namespace {

Value member(const Value& dict, std::string_view name) {
  const Value* found = dict.member(name);
  return found ? *found : Value();
}

RenderOptions at_noon() {
  RenderOptions options;
  std::tm noon{};
  noon.tm_sec = 56;
  noon.tm_min = 34;
  noon.tm_hour = 12;
  noon.tm_mday = 5;
  noon.tm_mon = 2;
  noon.tm_year = 126;
  noon.tm_wday = 4;
  noon.tm_yday = 63;
  options.now = noon;
  return options;
}

std::string render(const std::string& source, const Value& globals = Value::dict({})) {
  return Template(source).render(globals, at_noon());
}

/// What jinja2 rendered, and what it refused (recorded by compare.py).
TEST(Language, RendersAndRefusesAsJinja2) {
  std::ifstream file(BICACHED_SOURCE_DIR "/tests/jinja/language.json");
  std::ostringstream text;
  text << file.rdbuf();
  const Value cases = read_json_value(text.str());
  const Value globals = member(cases, "globals"), rows = member(cases, "rows");
  ASSERT_GT(rows.items().size(), 100u);
  for (const Value& row : rows.items()) {
    const std::string source = member(row, "template").text();
    const Value want = member(row, "text");
    try {
      const std::string got = render(source, globals);
      EXPECT_TRUE(want.is(Kind::kString)) << source << " is rendered: " << got;
      if (want.is(Kind::kString)) {
        EXPECT_EQ(got, want.text()) << source;
      }
    } catch (const TemplateError& e) {
      EXPECT_FALSE(want.is(Kind::kString)) << source << " is refused: " << e.what();
    }
  }
}

/// What Jinja has and this engine has not is refused by its name, never rendered otherwise.
TEST(Language, WhatIsNotSupportedIsNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {"{{ 1 | round }}", "the filter 'round'"},
      {"{{ 'a' | indent(2) }}", "the filter 'indent'"},
      {"{{ 3 is odd }}", "the test 'odd'"},
      {"{{ 'a'.find('a') }}", "the method 'find' of a str"},
      {"{{ 'a b'.split() }}", "the method 'split' without a separator"},
      {"{{ '{}'.format(1) }}", "the method 'format' of a str"},
      {"{{ 'a'.upper }}", "the method 'upper' of a str without a call"},
      {"{{ {}.copy() }}", "the method 'copy' of a dict"},
      {"{{ [1].index(1) }}", "the method 'index' of a list"},
      {"{{ 1 / 2 }}", "the operator /"},
      {"{{ 7 // 2 }}", "the operator //"},
      {"{{ 2 ** 3 }}", "the operator **"},
      {"{{ '%s' % 1 }}", "the operator % with a str"},
      {"{{ [1] * 2 }}", "the operator * with a list"},
      {"{{ 1.5 }}", "the number '1...'"},
      {"{{ 1 < 2 < 3 }}", "a chain of comparisons"},
      {"{{ [1] < [2] }}", "< or > of lists"},
      {"{{ [[1], [2]] | sort }}", "< or > of lists"},
      {"{{ '<' | safe + 'a' }}", "the operator + with text behind safe"},
      {"{{ '<' | safe | upper }}", "a filter of text behind safe"},
      {"{{ f(*[1]) }}", "a call with * or **"},
      {"{% for x in [1] %}{{ loop.cycle(1, 2) }}{% endfor %}", "loop.cycle"},
      {"{% for x in [1] recursive %}{% endfor %}", "a recursive loop"},
      {"{% set a, b = 1, 2 %}", "set with several names"},
      {"{% set a | upper %}x{% endset %}", "a set block with a filter"},
      {"{% with a = 1 %}{% endwith %}", "the tag 'with'"},
      {"{% raw %}{% endraw %}", "the tag 'raw'"},
      {"{% include 'x' %}", "the tag 'include'"},
      {"{% call m() %}{% endcall %}", "the tag 'call'"},
      {"{{ [1] | map('upper') }}", "printing a generator"},
      {"{{ {}.items()[0] }}", "an item of a dict view"},
      {"{{ 9223372036854775807 + 1 }}", "an integer beyond 64 bits"},
      {"{{ 'ß' | upper }}", "several upper-case letters"},
      {"{{ strftime_now('%Q') }}", "the time format \"%Q\""},
      {"{{ {} | tojson(default=1) }}", "the argument 'default' of tojson"},
      {"{{ {} | tojson(sort_keys=true) }}", "the argument 'sort_keys' of tojson"},
      {"{% set ns = namespace() %}{% set ns.x = [ns] %}",
       "a namespace or loop inside another value"},
      {"{% for x in [1] %}{{ [loop] }}{% endfor %}", "a namespace or loop inside another value"},
      {"{% for a, in [[1]] %}{% endfor %}", "unpacking into such targets"},
      {"{{ 1 if 0 if 1 }}", "an if behind an if without else"},
      {"{{ [{}] | map(attribute='a.b') | list }}", "the attribute 'a.b' of a filter"},
      {"{{ [{}] | map('upper', attribute='a') | list }}", "the filter 'map' with such arguments"},
      {"{{ '\\U0001F600' }}", "the string escape \\U"},
      {"{{ '\\u00e9' }}", "the string escape \\u"},
      {"{{ '\\x41' }}", "the string escape \\x"},
      {"{% for x in [] %}{% else %}none{% endfor %}", "the tag 'else'"},
      {"{{ 'a'.startswith(('a', 'b')) }}", "an argument that is no str but a tuple"},
  };
  for (const auto& [source, name] : cases) {
    try {
      ADD_FAILURE() << source << " is rendered: " << render(source);
    } catch (const TemplateError& e) {
      EXPECT_EQ(e.failure(), Failure::kUnsupported) << source << ": " << e.what();
      EXPECT_NE(std::string(e.what()).find(name), std::string::npos) << source << ": " << e.what();
    }
  }
}

TEST(Language, RaisedMessagesAreTheAuthors) {
  try {
    render("{{ raise_exception('no ' ~ 1) }}");
    FAIL();
  } catch (const TemplateError& e) {
    EXPECT_EQ(e.failure(), Failure::kRaised);
    EXPECT_STREQ(e.what(), "no 1");
  }
}

TEST(Language, ErrorsOfTheSourceNameTheLine) {
  try {
    Template("a\n{% if true %}\n{{ ) }}{% endif %}");
    FAIL();
  } catch (const TemplateError& e) {
    EXPECT_EQ(e.failure(), Failure::kSyntax);
    EXPECT_NE(std::string(e.what()).find("line 3"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace bicached::jinja
