#include "config/model_folder.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include "bicached/error.h"

namespace bicached {
namespace {

namespace fs = std::filesystem;

/// "org/name" is the folder models--org--name of the cache, with a folder for each commit.
constexpr const char* kRepositoryFolder = "models--";
constexpr const char* kSnapshots = "snapshots";

bool is_repository(const std::string& name) {
  const auto fits = [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == '/';
  };
  return std::ranges::count(name, '/') == 1 && name.front() != '/' && name.back() != '/' &&
         name.front() != '.' && std::ranges::all_of(name, fits);
}

/// Where Hugging Face's libraries keep what they download.
fs::path hub_cache() {
  const std::pair<const char*, const char*> places[] = {{"HF_HUB_CACHE", ""},
                                                        {"HF_HOME", "hub"},
                                                        {"XDG_CACHE_HOME", "huggingface/hub"},
                                                        {"HOME", ".cache/huggingface/hub"}};
  for (const auto& [variable, inside] : places) {
    const char* value = std::getenv(variable);
    if (value && *value) return fs::path(value) / inside;
  }
  return {};
}

/// The snapshot that the branch main was at when it was last downloaded, or the only one.
fs::path find_snapshot(const fs::path& cache, std::string repository) {
  repository.replace(repository.find('/'), 1, "--");
  const fs::path folder = cache / (kRepositoryFolder + repository);
  std::string commit;
  std::ifstream(folder / "refs" / "main") >> commit;
  std::vector<fs::path> snapshots;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder / kSnapshots, error)) {
    if (entry.path().filename() == commit) return entry.path();
    snapshots.push_back(entry.path());
  }
  return snapshots.size() == 1 ? snapshots.front() : fs::path();
}

}  // namespace

std::string find_model_folder(const std::string& model) {
  const auto refuse = [](const std::string& why) {
    throw Error(ErrorCode::kInvalidSettings, why, "model");
  };
  if (model.empty()) {
    refuse(
        "no model: name its folder with --model, BICACHED_MODEL or \"model\" in the configuration "
        "file");
  }
  std::error_code ignored;
  if (fs::is_directory(model, ignored)) return model;
  const std::string none = "model is '" + model + "': there is no such folder";
  if (!is_repository(model)) refuse(none);
  const fs::path cache = hub_cache();
  const fs::path snapshot = find_snapshot(cache, model);
  if (snapshot.empty()) {
    refuse(none + ", and no snapshot of a repository of this name in " + cache.string() +
           "; `hf download " + model + "` fetches one");
  }
  return snapshot.string();
}

std::string model_name(const std::string& folder) {
  const fs::path path = fs::weakly_canonical(folder);
  std::string name = path.parent_path().parent_path().filename().string();
  if (path.parent_path().filename() != kSnapshots || !name.starts_with(kRepositoryFolder)) {
    return path.filename().string();
  }
  name.erase(0, std::string(kRepositoryFolder).size());
  if (const size_t at = name.find("--"); at != std::string::npos) name.replace(at, 2, "/");
  return name;
}

}  // namespace bicached
