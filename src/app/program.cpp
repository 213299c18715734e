#include "app/program.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <sstream>
#include <string>
#include <string_view>

#include "base/free_memory.h"
#include "base/log.h"
#include "base/log_text.h"
#include "base/spare_memory.h"
#include "config/model_folder.h"

namespace bicached {
namespace {

/// Variables that libraries read when they are loaded, before main, so that the program has to
/// start once more for them; what is set already stays, and keeps that from happening twice.
///
/// libgomp's waiting threads spin, and where another process wants the cores too a forward then
/// takes a hundred times as long. Where they sleep at once, waking them is a tenth of a small
/// forward. So they spin for some microseconds: the next operation mostly begins within them.
///
/// oneDNN compiles kernels for each number of rows of each matrix, some 100 KB in bfloat16, and
/// keeps 1,024 of them; torch in front of it keeps 1,024 more, and under mixed requests these
/// caches grow for ten minutes, by hundreds of MB. Forwards fill their rows up to few different
/// numbers, so that a sixteenth of that serves as well (docs/measurements); but for experts.
void restart_with_libraries_set(const Program& program, int argc, char** argv) {
  struct Variable {
    const char* name;
    const char* value;
    const char* other;  // who set this one has said it, and the value would overrule that
  };
  constexpr Variable kVariables[] = {{"GOMP_SPINCOUNT", "1000", "OMP_WAIT_POLICY"},
                                     {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64", nullptr},
                                     {"LRU_CACHE_CAPACITY", "64", nullptr}};
  const std::string_view name = argc > 1 ? argv[1] : "";
  const bool computes = std::ranges::any_of(program.commands, [&](const Command& command) {
    return command.name == name && command.computes;
  });
  bool changed = false;
  for (const Variable& variable : kVariables) {
    const bool is_said =
        std::getenv(variable.name) || (variable.other && std::getenv(variable.other));
    if (!computes || is_said) continue;
    setenv(variable.name, variable.value, 0);
    changed = true;
  }
  if (changed) execv("/proc/self/exe", argv);  // where there is no /proc it only runs slower
}

/// A socket must not get the number of a standard stream that is closed: log lines would go to it.
void open_standard_streams() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (fcntl(fd, F_GETFD) < 0) {
      [[maybe_unused]] const int opened = open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY);
    }
  }
}

/// Where the working folder was deleted a part of libtorch (oneMKL) ends the process while it is
/// loaded, and says that it can't load libtorch. So this comes before any library begins.
void check_working_folder() {
  char path[4096];
  if (getcwd(path, sizeof path) || errno != ENOENT) return;
  constexpr std::string_view kWhy =
      "bicached: the working folder was deleted; start the program in another one\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kWhy.data(), kWhy.size());
  _exit(2);
}

/// A server reads SIGHUP once it has begun (app/shutdown_signals). Until then it waits: a
/// supervisor that reloads would end the start.
void hold_hangup(int argc, char** argv) {
  if (argc < 2 || std::string_view(argv[1]) != "serve") return;
  sigset_t hangup;
  sigemptyset(&hangup);
  sigaddset(&hangup, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &hangup, nullptr);
}

void before_libraries(int argc, char** argv, char**) {
  check_working_folder();
  hold_hangup(argc, argv);
}
[[gnu::section(".preinit_array"),
  gnu::used]] void (*run_before_libraries)(int, char**, char**) = before_libraries;

int run(const Program& program, int argc, char** argv) {
  CommandLine line = parse_command_line(program, argc, argv);
  if (!line.command) return 0;
  line.sources.environment = read_environment();
  Settings settings = load_settings(line.sources);
  log_setup(settings.log.level, settings.log.format, settings.log.file);
  if (line.command->takes_model) settings.model.path = find_model_folder(settings.model.path);
  return line.command->run(settings);
}

}  // namespace

int run_program(const Program& program, int argc, char** argv) {
  open_standard_streams();
  keep_freed_memory();
  set_memory_aside();
  restart_with_libraries_set(program, argc, argv);
  try {
    return run(program, argc, argv);
  } catch (const std::exception& error) {
    // What a file holds may stand in it, and must not write to the terminal.
    std::string text = std::string(program.name) + ": ";
    std::string line;
    for (std::istringstream lines(error.what()); std::getline(lines, line);) {
      text += visible_text(line) + "\n";
    }
    std::fputs(text.c_str(), stderr);
    return 2;
  }
}

}  // namespace bicached
