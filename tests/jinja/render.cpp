// jinja_render: renders what a JSON file lists, a result a line. The other half of compare.py.
#include <ctime>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "jinja/read_json.h"
#include "text/jinja/template.h"

namespace {

namespace jinja = bicached::jinja;

const char* name_of(jinja::Failure failure) {
  switch (failure) {
    case jinja::Failure::kSyntax: return "syntax";
    case jinja::Failure::kUnsupported: return "unsupported";
    case jinja::Failure::kRuntime: return "runtime";
    case jinja::Failure::kRaised: return "raised";
    case jinja::Failure::kLimit: return "limit";
  }
  return "";
}

jinja::RenderOptions at_noon() {
  std::tm time{};
  std::istringstream("2026-03-05T12:34:56") >> std::get_time(&time, "%Y-%m-%dT%H:%M:%S");
  time.tm_isdst = -1;
  std::mktime(&time);  // fills in the day of the week and of the year
  jinja::RenderOptions options;
  options.now = time;
  return options;
}

nlohmann::json result_of(const jinja::Value& row) {
  try {
    const jinja::Template compiled(row.member(std::string_view("template"))->text());
    return {{"text", compiled.render(*row.member(std::string_view("globals")), at_noon())}};
  } catch (const jinja::TemplateError& e) {
    return {{"failure", name_of(e.failure())}, {"message", e.what()}};
  }
}

}  // namespace

/// jinja_render FILE: a JSON list of {"template", "globals"}.
int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: jinja_render FILE\n";
    return 2;
  }
  std::ifstream file(argv[1]);
  std::ostringstream text;
  text << file.rdbuf();
  try {
    const jinja::Value rows = read_json_value(text.str());
    for (const jinja::Value& row : rows.items())
      std::cout << result_of(row).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                << std::endl;
  } catch (const std::exception& e) {
    std::cerr << "jinja_render: " << e.what() << "\n";
    return 2;
  }
}
