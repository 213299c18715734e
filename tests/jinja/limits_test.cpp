// Templates that would hang, fill memory or overflow the stack if nothing stopped them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "text/jinja/template.h"

namespace bicached::jinja {
namespace {

std::string times(int n, const std::string& text) {
  std::string out;
  for (int i = 0; i < n; ++i) out += text;
  return out;
}

/// Small limits: what is bounded at all is bounded here in moments on any machine.
std::string failure_of(const std::string& source) {
  RenderOptions options;
  options.limits.max_steps = 200'000;
  options.limits.max_work_bytes = 8 << 20;
  try {
    Template(source).render(Value::dict({}), options);
  } catch (const TemplateError& e) {
    return e.failure() == Failure::kLimit ? "limit" : e.what();
  }
  return "none";
}

TEST(Limits, EndlessWorkEnds) {
  const std::string nested =
      "{% set ns = namespace(x='a', y='a') %}{% for i in range(60) %}"
      "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
  const std::string long_text =
      "{% set a = 'a' * 1000000 %}{% set b = a ~ '' %}"
      "{% for i in range(100000) %}";
  for (const std::string& source : {
           std::string(
               "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"),
           std::string("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s "
                       "~ ns.s %}{% endfor %}"),
           std::string("{{ 'a' * 100000000000 }}"),
           std::string("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
           nested + "{{ ns.x }}",
           nested + "{{ ns.x | tojson }}",
           nested + "{{ ns.x == ns.y }}",
           nested + "{{ [ns.x] | join }}",
           "{% set x = [" + times(4000, "range(100000),") + "] %}",
           long_text + "{% if a is eq b %}{% endif %}{% endfor %}",
           long_text + "{% if 'aaaaaaaab' is in a %}{% endif %}{% endfor %}",
           long_text + "{% if a.endswith(b) %}{% endif %}{% endfor %}",
           long_text + "{{ a[1:2] }}{% endfor %}",
           long_text + "{{ a[0] }}{% endfor %}",
           long_text + "{{ a | length }}{% endfor %}",
           long_text + "{{ a | upper | first }}{% endfor %}",
           long_text + "{{ a.split('a') | length }}{% endfor %}",
           long_text + "{% for c in a %}{% endfor %}{% endfor %}",
           "{% for i in range(1000) %}{% set d = {" +
               [] {
                 std::string keys;
                 for (int i = 0; i < 2000; ++i) keys += "'" + std::to_string(i) + "':1,";
                 return keys;
               }() +
               "} %}{% endfor %}",
       }) {
    EXPECT_EQ(failure_of(source), "limit") << source.substr(0, 200);
  }
}

int64_t peak_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss >> 10;
}

/// With the limits that a server has: what is made and kept, as text, lists or both.
TEST(Limits, ARenderingTakesBoundedMemory) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory is counted with it";
#endif
  const std::string kept = "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}";
  const auto keep = [&](const std::string& what) {
    return kept + "{% set ns.l = ns.l + [" + what + "] %}{% endfor %}";
  };
  const int64_t before = peak_mib();
  for (const std::string& source : std::vector<std::string>{
           keep("message[1:]"),
           keep("message | upper"),
           keep("message ~ i"),
           keep("message.split('a', 1000)"),
           keep("'a' * 1000000"),
           keep("range(50000) | list"),
           keep("[" + times(15000, "i,") + "]"),
           keep("message | list"),
           keep("{'a': message ~ i}"),
           "{% for i in range(100000) %}{{ message }}{% endfor %}",
           "{% set t %}" + kept + "{{ message }}{% endfor %}{% endset %}",
       }) {
    try {
      Template(source).render(
          Value::dict({{Value::string("message"), Value::string(std::string(400'000, 'a'))}}));
      ADD_FAILURE() << source.substr(0, 100) << " is rendered";
    } catch (const TemplateError& e) {
      EXPECT_EQ(e.failure(), Failure::kLimit) << e.what();
      EXPECT_NE(std::string(e.what()).find(" MiB of text and lists"), std::string::npos)
          << e.what();
    }
    EXPECT_LT(peak_mib() - before, 300) << source.substr(0, 100);
  }
}

TEST(Limits, DeepValuesAreRefusedWhenMade) {
  const std::string loop = "{% for i in range(100000) %}";
  for (const std::string& source : {
           "{% set ns = namespace(x=[]) %}" + loop + "{% set ns.x = [ns.x] %}{% endfor %}",
           "{% set ns = namespace(x=[]) %}" + loop + "{% set ns.x = {'a': ns.x} %}{% endfor %}",
           "{% set ns = namespace(x=[]) %}" + loop + "{% set ns.x = (ns.x,) %}{% endfor %}",
       }) {
    EXPECT_EQ(failure_of(source), "limit") << source;
  }
}

TEST(Limits, DeepExpressionsInDeepMacrosKeepToTheStack) {
  const std::string blocks = times(95, "{% if 1 %}");
  EXPECT_EQ(failure_of("{% macro f() %}" + blocks + "{{ f()" + times(290, " ~ 'a'") + " }}" +
                       times(95, "{% endif %}") + "{% endmacro %}{{ f() }}"),
            "limit");
}

TEST(Limits, DeepSourcesAreRefused) {
  for (const std::string& source : {
           "{{ " + times(30000, "(") + "1" + times(30000, ")") + " }}",
           "{{ " + times(30000, "[") + times(30000, "]") + " }}",
           "{{ " + times(15000, "not ") + "1 }}",
           "{{ " + times(60000, "-") + "1 }}",
           times(3000, "{% if 1 %}") + times(3000, "{% endif %}"),
           times(1500, "{% for a in [1] %}") + times(1500, "{% endfor %}"),
           "{% if 0 %}" + times(5000, "{% elif 0 %}") + "{% endif %}",
           "{{ 'a'" + times(9000, "|upper") + " }}",
           "{{ messages" + times(20000, "[0]") + " }}",
           "{{ 'a'" + times(16000, "~'a'") + " }}",
           "{{ 1" + times(30000, "+1") + " }}",
           "{{ 1" + times(10000, " and 1") + " }}",
           "{{ " + times(5000, "1 if 0 else ") + "2 }}",
           times(70000, "x"),
       }) {
    EXPECT_EQ(failure_of(source), "limit") << source.substr(0, 60);
  }
}

/// Each would hold the one before it, which the end of the rendering frees one inside the other.
TEST(Limits, AChainOfLoopsIsRefusedWhenMade) {
  EXPECT_THAT(failure_of("{% set ns = namespace(l=0) %}{% for i in range(20000) %}"
                         "{% for x in [ns.l] %}{% set ns.l = loop %}{% endfor %}{% endfor %}"),
              testing::StartsWith("a namespace or loop inside another value"));
}

TEST(Limits, WhatOutlivesItsLoopStaysValid) {
  EXPECT_EQ(
      Template("{% set ns = namespace(l=0) %}{% for x in [1, 2] %}{% set ns.l = loop %}{% endfor %}"
               "{{ ns.l.previtem }}{{ ns.l.nextitem }}")
          .render(Value::dict({})),
      "1");  // as jinja2: the loop stays at its last item
  EXPECT_EQ(
      failure_of(
          "{% set ns = namespace(l=0) %}{% for x in [1] %}{% macro m() %}{{ x }}{% endmacro %}"
          "{% set ns.l = m %}{% endfor %}{{ ns.l() }}{{ ns.l() }}"),
      "none");
}

TEST(Limits, ExtremeIntegersDoNotTrap) {
  EXPECT_EQ(Template("{{ (0 - 9223372036854775807 - 1) % -1 }}").render(Value::dict({})), "0");
  EXPECT_EQ(Template("{{ range(0 - 9223372036854775807, 9223372036854775807, 9223372036854775807) "
                     "| list | length }}")
                .render(Value::dict({})),
            "2");
}

}  // namespace
}  // namespace bicached::jinja
