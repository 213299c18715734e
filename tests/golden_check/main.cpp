#include <exception>
#include <filesystem>
#include <iostream>

#include "golden_check/report.h"

namespace {

void check_folder(const std::filesystem::path& folder, Report& report) {
  check_text(folder, report);
  check_lookups(folder, report);
#ifdef BICACHED_CHECK_TENSORS
  check_tensors(folder, report);
#endif
#ifdef BICACHED_CHECK_TRACES
  check_traces(folder, report);
#endif
#ifdef BICACHED_CHECK_PROFILE
  check_profile(folder, report);
#endif
#ifndef BICACHED_WITH_TORCH
  for (const char* name : {"logits", "sampling", "entry", "traces", "schedules", "profile.json"}) {
    if (std::filesystem::exists(folder / name)) report.skip(name, "this build has no torch");
  }
#endif
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: golden_check DIR...\n";
    return 2;
  }
  Report report;
  for (int i = 1; i < argc; ++i) {
    const std::filesystem::path folder = argv[i];
    if (!std::filesystem::is_directory(folder)) {
      std::cerr << folder.string() << ": no such directory\n";
      return 2;
    }
    const int before = report.num_lines();
    try {
      check_folder(folder, report);
    } catch (const std::exception& e) {
      report.fail(folder.string(), std::string("the golden data can't be read: ") + e.what());
    }
    if (report.num_lines() == before) {
      std::cerr << folder.string() << ": holds no golden data that this program knows\n";
      return 2;
    }
  }
  report.print_summary();
  return report.num_failed() == 0 ? 0 : 1;
}
