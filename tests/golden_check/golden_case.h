#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "golden_check/report.h"

/// Thrown by a case that needs what this program does not have yet: it is skipped.
struct MissingFeature {
  std::string name;
};

/// Thrown at the first difference: the case fails.
struct Mismatch {
  std::string what;
};

inline nlohmann::json read_json(const std::filesystem::path& path) {
  return nlohmann::json::parse(std::ifstream(path));
}

/// One line of the report: what the case throws, or that it passed.
template <class Check>
void run_case(const std::string& name, Report& report, Check&& check) {
  try {
    check();
    report.pass(name);
  } catch (const MissingFeature& feature) {
    report.skip(name, feature.name);
  } catch (const Mismatch& mismatch) {
    report.fail(name, mismatch.what);
  } catch (const std::exception& e) {
    report.fail(name, e.what());
  }
}
