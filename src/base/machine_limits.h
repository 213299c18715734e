#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace bicached {

/// What this process may take of the machine: a container or service manager often allows less
/// than the machine has.
struct MachineLimits {
  int64_t memory_bytes = 0;          // the machine's, or what the cgroup allows
  int64_t free_memory_bytes = 0;     // what is left of it now; file pages count as free
  bool memory_is_limited = false;    // by a cgroup
  int num_cpus = 1;                  // that it may run on, a quota rounded up
  bool cpus_are_limited = false;     // by a cgroup's quota or the affinity
  std::optional<int64_t> max_tasks;  // processes and threads of the cgroup; none: no limit
};

/// Reads /proc and the cgroups (v1 and v2) that the process is in, with all above them. `root`:
/// where /proc and /sys are, for tests. Never throws: what can't be read limits nothing.
MachineLimits read_machine_limits(const std::string& root = "");

/// "4.0 GiB of memory (1.2 GiB free; limited by a cgroup), 2 CPUs, at most 64 tasks".
std::string describe(const MachineLimits& limits);

/// CPU threads of an operation: `wanted`, or for 0 what OMP_NUM_THREADS says, else the CPUs.
int choose_num_threads(int wanted);

/// How many more threads can be started, at most `wanted`: found by starting them, since besides
/// cgroups there are limits of the user and of the machine.
int count_startable_threads(int wanted);

}  // namespace bicached
