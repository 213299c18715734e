#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace bicached {

/// How far a long piece of work is, on standard error: on a terminal a bar with the time left, else
/// a line every tenth. One thread.
class Progress {
 public:
  /// "profile", 2000, "conversations".
  Progress(std::string label, int64_t total, std::string unit);

  /// `done` of the total are done; `note` is shown after the count.
  void show(int64_t done, const std::string& note = "");

 private:
  void show_bar(int64_t done, const std::string& text) const;

  const std::string label_;
  const int64_t total_;
  const std::string unit_;
  const bool is_terminal_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point shown_at_;
  int64_t first_done_ = -1;  // done before this run: says nothing about its speed
  int64_t shown_tenth_ = -1;
};

}  // namespace bicached
