#include "base/machine_limits.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <system_error>
#include <thread>
#include <vector>

namespace bicached {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
/// v1 writes "no limit" as a number of this order.
constexpr int64_t kLeastAbsurd = int64_t{1} << 60;

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// The file's number; none: it says "max" or -1, or is not there.
std::optional<int64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t number = 0;
  if (!(file >> number) || number < 0 || number >= kLeastAbsurd) return std::nullopt;
  return number;
}

/// The number behind a name in a file of lines "name number".
int64_t read_entry(const std::string& text, const std::string& name) {
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string word;
    int64_t number = 0;
    if (words >> word >> number && word == name) return number;
  }
  return 0;
}

/// Folders of the process's cgroups. In a container the path that /proc tells may not be there:
/// then its own group is at the mount point.
class Cgroups {
 public:
  explicit Cgroups(const std::string& root) : base_(root + "/sys/fs/cgroup") {
    std::istringstream lines(read_file(root + "/proc/self/cgroup"));
    std::string line;
    while (std::getline(lines, line)) {
      const size_t first = line.find(':');
      const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
      if (second == std::string::npos) continue;
      std::istringstream controllers(line.substr(first + 1, second - first - 1));
      const std::string path = line.substr(second + 1);
      std::string controller;
      if (second == first + 1) paths_[""] = path;
      while (std::getline(controllers, controller, ',')) paths_[controller] = path;
    }
  }

  /// Calls `use` with each folder of a controller, the process's own first, up to the mount point.
  template <typename Use>
  void for_each_folder(const std::string& controller, Use use) const {
    const std::string mounts[] = {base_ + "/" + controller, base_, base_ + "/unified"};
    for (const std::string& mount : mounts) {
      const bool is_v1 = mount == mounts[0];
      const auto it = paths_.find(is_v1 ? controller : "");
      std::string path = it == paths_.end() ? "" : it->second;
      while (true) {
        use(mount + (path == "/" ? "" : path), is_v1);
        if (path.empty() || path == "/") break;
        path.erase(path.rfind('/'));
      }
    }
  }

 private:
  std::string base_;
  std::map<std::string, std::string> paths_;  // by controller of v1; "" is v2's
};

void read_memory(const std::string& root, const Cgroups& cgroups, MachineLimits& limits) {
  const std::string machine = read_file(root + "/proc/meminfo");
  limits.memory_bytes = read_entry(machine, "MemTotal:") * 1024;
  limits.free_memory_bytes = read_entry(machine, "MemAvailable:") * 1024;
  cgroups.for_each_folder("memory", [&](const std::string& folder, bool is_v1) {
    const auto limit = read_number(folder + (is_v1 ? "/memory.limit_in_bytes" : "/memory.max"));
    const auto high = is_v1 ? std::nullopt : read_number(folder + "/memory.high");
    const int64_t least = std::min(limit.value_or(kNoLimit), high.value_or(kNoLimit));
    if (least == kNoLimit || (limits.memory_bytes > 0 && least >= limits.memory_bytes)) return;
    const int64_t used =
        read_number(folder + (is_v1 ? "/memory.usage_in_bytes" : "/memory.current")).value_or(0);
    // Pages of files go when memory is wanted.
    const std::string stat = read_file(folder + "/memory.stat");
    const std::string kind = is_v1 ? "total_" : "";
    const int64_t pages =
        read_entry(stat, kind + "inactive_file") + read_entry(stat, kind + "active_file");
    const int64_t left = std::max<int64_t>(0, least - std::max<int64_t>(0, used - pages));
    limits.memory_is_limited = true;
    limits.memory_bytes = least;
    limits.free_memory_bytes = std::min(limits.free_memory_bytes, left);
  });
}

int affine_cpus() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (::sched_getaffinity(0, sizeof cpus, &cpus) != 0) {
    return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  }
  return std::max(1, CPU_COUNT(&cpus));
}

void read_cpus(const Cgroups& cgroups, MachineLimits& limits) {
  limits.num_cpus = affine_cpus();
  cgroups.for_each_folder("cpu", [&](const std::string& folder, bool is_v1) {
    double quota = 0, period = 0;
    if (is_v1) {
      quota = static_cast<double>(read_number(folder + "/cpu.cfs_quota_us").value_or(0));
      period = static_cast<double>(read_number(folder + "/cpu.cfs_period_us").value_or(0));
    } else {
      std::istringstream words(read_file(folder + "/cpu.max"));
      words >> quota >> period;  // "max 100000" gives no number
    }
    if (quota <= 0 || period <= 0) return;
    const int cpus = std::max(1, static_cast<int>(std::ceil(quota / period)));
    if (cpus >= limits.num_cpus) return;
    limits.num_cpus = cpus;
    limits.cpus_are_limited = true;
  });
}

std::string bytes_text(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GiB", static_cast<double>(bytes) / (int64_t{1} << 30));
  return text;
}

}  // namespace

MachineLimits read_machine_limits(const std::string& root) {
  MachineLimits limits;
  const Cgroups cgroups(root);
  read_memory(root, cgroups, limits);
  read_cpus(cgroups, limits);
  cgroups.for_each_folder("pids", [&](const std::string& folder, bool) {
    const auto max = read_number(folder + "/pids.max");
    if (max) limits.max_tasks = std::min(limits.max_tasks.value_or(kNoLimit), *max);
  });
  return limits;
}

std::string describe(const MachineLimits& limits) {
  std::string text = bytes_text(limits.memory_bytes) + " of memory (" +
                     bytes_text(limits.free_memory_bytes) + " free" +
                     (limits.memory_is_limited ? "; limited by a cgroup" : "") + "), " +
                     std::to_string(limits.num_cpus) + (limits.num_cpus == 1 ? " CPU" : " CPUs") +
                     (limits.cpus_are_limited ? " (limited by a cgroup)" : "");
  if (limits.max_tasks) text += ", at most " + std::to_string(*limits.max_tasks) + " tasks";
  return text;
}

int choose_num_threads(int wanted) {
  if (wanted > 0) return wanted;
  constexpr long kMost = 1024;
  // A list of numbers is for nested parallel parts; the first one is ours.
  const char* omp = std::getenv("OMP_NUM_THREADS");
  const long given = omp ? std::strtol(omp, nullptr, 10) : 0;
  if (given > 0) return static_cast<int>(std::min(given, kMost));
  return read_machine_limits().num_cpus;
}

int count_startable_threads(int wanted) {
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(std::max(0, wanted)));
  try {
    while (static_cast<int>(threads.size()) < wanted) {
      threads.emplace_back([&done] { done.wait(false); });
    }
  } catch (const std::system_error&) {
    // No more can be started: that is the answer.
  }
  done = true;
  done.notify_all();
  for (std::thread& thread : threads) thread.join();
  return static_cast<int>(threads.size());
}

}  // namespace bicached
