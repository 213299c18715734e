#include "lab/partial_results.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "bicached/error.h"

namespace bicached {

using Json = nlohmann::json;

PartialResults::PartialResults(std::string path) : path_(std::move(path)) {
  read();
  num_found_ = results_.size();
  file_.open(path_, std::ios::app);
  file_ << '\n';  // the last line of an earlier run may have been cut
  file_.flush();
  if (file_) return;
  throw Error(ErrorCode::kInvalidSettings, "--out: " + path_ + " can't be written", "--out");
}

void PartialResults::read() {
  std::ifstream file(path_);
  for (std::string line; std::getline(file, line);) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    try {
      results_[{json.at("index").get<int>(), json.at("hash").get<std::string>()}] =
          json.at("similarity").get<std::vector<double>>();
    } catch (const Json::exception&) {
      continue;
    }
  }
}

const std::vector<double>* PartialResults::find(int index, const std::string& hash) const {
  const auto it = results_.find({index, hash});
  return it == results_.end() ? nullptr : &it->second;
}

void PartialResults::add(int index, const std::string& hash, std::vector<double> numbers) {
  file_ << Json{{"index", index}, {"hash", hash}, {"similarity", numbers}}.dump() << '\n';
  file_.flush();
  if (!file_) {
    throw Error(ErrorCode::kInvalidSettings, "--out: " + path_ + " can't be written to", "--out");
  }
  results_[{index, hash}] = std::move(numbers);
}

void PartialResults::remove() {
  file_.close();
  std::error_code ignored;  // a left-over file costs nothing: its hashes still tell
  std::filesystem::remove(path_, ignored);
}

}  // namespace bicached
