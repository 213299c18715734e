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

  /// What can be released after `text` arrived. After a stop string was found: nothing more. One
  /// that ends within a text that does not count (`may_stop` false) is no stop.
  std::string push(std::string_view text, bool may_stop = true);
  /// What was held back, at the end of the text.
  std::string flush();
  bool stopped() const { return stopped_; }
  /// The stop string that was found; empty: none.
  const std::string& found() const { return found_; }
  /// Begins anew, with nothing held back.
  void restart() {
    held_.clear();
    num_uncounted_ = 0;
    found_.clear();
    stopped_ = false;
  }

 private:
  std::vector<std::string> stops_;  // not empty strings
  std::string held_;
  size_t num_uncounted_ = 0;  // first bytes of `held_` in which no stop string may end
  std::string found_;
  bool stopped_ = false;
};

}  // namespace bicached
