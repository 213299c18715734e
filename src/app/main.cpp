#include <fcntl.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <sstream>
#include <string>
#include <string_view>

#include "app/commands.h"
#include "base/log.h"
#include "base/log_text.h"

namespace bicached {
namespace {

/// libgomp's waiting threads spin, and where another process wants the cores too a forward then
/// takes a hundred times as long. It reads this variable when it is loaded, before main, so the
/// program has to start once more; the variable itself keeps that from happening twice.
void restart_with_passive_waiting(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  constexpr std::string_view kComputing[] = {"serve", "generate", "eval", "profile"};
  const bool computes = std::ranges::find(kComputing, command) != std::end(kComputing);
  if (!computes || std::getenv("OMP_WAIT_POLICY")) return;
  setenv("OMP_WAIT_POLICY", "passive", 1);
  // oneDNN compiles a kernel for each number of rows and keeps 1,024 of them: 240 MB more after a
  // minute of mixed requests to the demo model than with 32, and no faster.
  setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32", 0);
  execv("/proc/self/exe", argv);  // where there is no /proc it only runs slower
}

/// A forward asks for the same megabytes again and again. As glibc is set, it gives them back to
/// the system at once and gets them anew a page at a time: a third of the time of a small model
/// with a large vocabulary. Each arena keeps its own, and by default there are eight for each core:
/// two are enough where one thread computes. What they keep goes back now and then
/// (engine/engine.cpp).
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_ARENA_MAX, 2);
  mallopt(M_TRIM_THRESHOLD, 128 << 20);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the greatest that is allowed
#endif
}

/// A socket must not get the number of a standard stream that is closed: log lines would go to it.
void open_standard_streams() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (fcntl(fd, F_GETFD) < 0) {
      [[maybe_unused]] const int opened = open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY);
    }
  }
}

int run(int argc, char** argv) {
  CommandLine line = parse_command_line(argc, argv);
  if (line.command.empty()) return 0;
  if (line.command == "settings" && line.markdown) {
    std::fputs(settings_to_markdown().c_str(), stdout);
    return 0;
  }
  line.sources.environment = read_environment();
  const Settings settings = load_settings(line.sources);
  log_setup(settings.log.level, settings.log.format, settings.log.file);
  if (line.command == "serve") return run_serve(settings);
  if (line.command == "generate") return run_generate(settings, line.generate);
  if (line.command == "eval") return run_eval(settings, line.eval);
  if (line.command == "profile") return run_profile(settings, line.profile);
  if (line.command == "info") return run_info(settings, line.info);
  std::puts(settings_to_json(settings).c_str());
  return 0;
}

}  // namespace
}  // namespace bicached

int main(int argc, char** argv) {
  bicached::open_standard_streams();
  bicached::keep_freed_memory();
  bicached::restart_with_passive_waiting(argc, argv);
  try {
    return bicached::run(argc, argv);
  } catch (const std::exception& error) {
    // What a file holds may stand in it, and must not write to the terminal.
    std::string text = "bicached: ";
    std::string line;
    for (std::istringstream lines(error.what()); std::getline(lines, line);) {
      text += bicached::visible_text(line) + "\n";
    }
    std::fputs(text.c_str(), stderr);
    return 2;
  }
}
