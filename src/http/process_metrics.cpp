#include "http/process_metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

namespace bicached {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

/// std::filesystem ends the process where there is no memory to list a folder.
std::optional<int> count_open_files() {
  DIR* const folder = ::opendir("/proc/self/fd");
  if (!folder) return std::nullopt;
  int count = 0;
  while (const dirent* entry = ::readdir(folder)) count += entry->d_name[0] != '.' ? 1 : 0;
  ::closedir(folder);
  return count - 1;  // without the folder's own
}

/// Fields of /proc/self/stat from the third on (man 5 proc): the second, a name, may hold blanks.
std::vector<double> stat_fields() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  std::istringstream words(line.substr(std::min(line.rfind(')') + 2, line.size())));
  std::string state;
  words >> state;
  std::vector<double> fields;
  for (double number = 0; words >> number;) fields.push_back(number);
  return fields;
}

/// Seconds since 1970 at which the machine started.
double boot_time() {
  std::ifstream file("/proc/stat");
  std::string name;
  double seconds = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    if (words >> name >> seconds && name == "btime") return seconds;
  }
  return 0;
}

}  // namespace

MetricFamily make_metric(const std::string& name, const char* help, double value) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = name.ends_with("_total") ? MetricType::Counter : MetricType::Gauge;
  prometheus::ClientMetric metric;
  if (family.type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family.metric.push_back(metric);
  return family;
}

std::vector<MetricFamily> process_metrics() {
  std::vector<MetricFamily> families;
  const auto add = [&](const char* name, const char* help, double value) {
    families.push_back(make_metric(name, help, value));
  };
  const std::vector<double> fields = stat_fields();
  // Indices count from the fourth field of the page.
  constexpr size_t kUserTicks = 10, kSystemTicks = 11, kThreads = 16, kStartTicks = 18,
                   kVirtualBytes = 19, kResidentPages = 20;
  if (fields.size() > kResidentPages) {
    const auto ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
    const auto page = static_cast<double>(::sysconf(_SC_PAGESIZE));
    add("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.",
        (fields[kUserTicks] + fields[kSystemTicks]) / ticks);
    add("process_start_time_seconds", "Start time of the process since unix epoch in seconds.",
        boot_time() + fields[kStartTicks] / ticks);
    add("process_virtual_memory_bytes", "Virtual memory size in bytes.", fields[kVirtualBytes]);
    add("process_resident_memory_bytes", "Resident memory size in bytes.",
        fields[kResidentPages] * page);
    add("process_threads", "Number of OS threads in the process.", fields[kThreads]);
  }
  if (const std::optional<int> num_open = count_open_files()) {
    add("process_open_fds", "Number of open file descriptors.", *num_open);
  }
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    add("process_max_fds", "Maximum number of open file descriptors.",
        static_cast<double>(limit.rlim_cur));
  }
  return families;
}

}  // namespace bicached
