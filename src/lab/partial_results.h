#pragma once

#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace bicached {

/// Numbers by conversation in a file beside the result, so that a run that was stopped goes on
/// where it was. A line each: {"index": 7, "hash": "...", "similarity": [...]}. One thread, one
/// process.
class PartialResults {
 public:
  /// Reads what an earlier run left; a line that can't be read (cut off by the end of the process)
  /// counts as not there. Throws kInvalidSettings when the file can't be written.
  explicit PartialResults(std::string path);

  /// Null: not there, or made of another text.
  const std::vector<double>* find(int index, const std::string& hash) const;
  /// Written through before it returns.
  void add(int index, const std::string& hash, std::vector<double> numbers);
  size_t num_found() const { return num_found_; }
  /// Deletes the file: the result is written.
  void remove();

 private:
  void read();

  const std::string path_;
  std::ofstream file_;
  std::map<std::pair<int, std::string>, std::vector<double>> results_;
  size_t num_found_ = 0;
};

}  // namespace bicached
