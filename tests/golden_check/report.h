#pragma once

#include <filesystem>
#include <iostream>
#include <string>

/// Counts and prints golden cases, a line each.
class Report {
 public:
  void pass(const std::string& name) { line("pass", name, ""), ++num_passed_; }
  void fail(const std::string& name, const std::string& why) {
    line("fail", name, why), ++num_failed_;
  }
  void skip(const std::string& name, const std::string& why) {
    line("skip", name, why), ++num_skipped_;
  }
  /// A case marked `known_reference_quirk`: neither passes nor fails.
  void quirk(const std::string& name, bool agrees, const std::string& what) {
    line("quirk", name, (agrees ? "we agree: " : "we differ: ") + what);
    ++num_quirks_;
  }

  int num_lines() const { return num_passed_ + num_failed_ + num_skipped_ + num_quirks_; }
  int num_failed() const { return num_failed_; }
  void print_summary() const {
    std::cout << num_passed_ << " passed, " << num_failed_ << " failed, " << num_skipped_
              << " skipped";
    if (num_quirks_ > 0) std::cout << ", " << num_quirks_ << " known quirks";
    std::cout << std::endl;
  }

 private:
  void line(const char* verdict, const std::string& name, const std::string& text) {
    std::cout << verdict << " " << name << (text.empty() ? "" : ": ") << text << "\n";
  }

  int num_passed_ = 0, num_failed_ = 0, num_skipped_ = 0, num_quirks_ = 0;
};

/// One function a kind of golden data; each looks for its own files under `folder` and does nothing
/// where there are none.
void check_text(const std::filesystem::path& folder, Report& report);     // text.cpp
void check_lookups(const std::filesystem::path& folder, Report& report);  // lookups.cpp
void check_profile(const std::filesystem::path& folder, Report& report);  // profile.cpp
void check_tensors(const std::filesystem::path& folder,
                   Report& report);  // tensors.cpp: logits, sampling, entry
void check_traces(const std::filesystem::path& folder,
                  Report& report);  // traces.cpp: traces, schedules
