#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

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
