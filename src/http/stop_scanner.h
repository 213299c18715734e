#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace bicached {

/// Finds stop strings in a text that arrives in pieces, and holds back what may still become one.
/// The text released in all does not depend on how it was cut into pieces. One thread.
class StopScanner {
 public:
  explicit StopScanner(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// What can be released after `text` arrived. After a stop string was found: nothing more.
  std::string push(std::string_view text);
  /// What was held back, at the end of the text.
  std::string flush();
  bool stopped() const { return stopped_; }
  /// The stop string that was found; empty: none.
  const std::string& found() const { return found_; }
  /// Begins anew, with nothing held back.
  void restart() {
    held_.clear();
    found_.clear();
    stopped_ = false;
  }

 private:
  std::vector<std::string> stops_;  // not empty strings
  std::string held_;
  std::string found_;
  bool stopped_ = false;
};

}  // namespace bicached
