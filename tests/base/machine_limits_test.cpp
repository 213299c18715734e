#include "base/machine_limits.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace bicached {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kMiB = 1 << 20;

/// A machine of 8 GiB, 6 of them free, made of files.
class MachineLimitsTest : public testing::Test {
 protected:
  MachineLimitsTest() {
    fs::remove_all(root);
    write("proc/meminfo", "MemTotal:  8388608 kB\nMemFree:  10 kB\nMemAvailable:  6291456 kB\n");
  }
  ~MachineLimitsTest() override { fs::remove_all(root); }

  void write(const std::string& path, const std::string& text) {
    fs::create_directories((fs::path(root) / path).parent_path());
    std::ofstream(fs::path(root) / path) << text;
  }
  MachineLimits read() { return read_machine_limits(root); }

  const std::string root = testing::TempDir() + "bicached_limits_" + std::to_string(::getpid());
};

TEST_F(MachineLimitsTest, WithoutCgroupsItIsTheMachine) {
  const MachineLimits limits = read();
  EXPECT_EQ(limits.memory_bytes, 8192 * kMiB);
  EXPECT_EQ(limits.free_memory_bytes, 6144 * kMiB);
  EXPECT_FALSE(limits.memory_is_limited);
  EXPECT_FALSE(limits.max_tasks);
  EXPECT_GE(limits.num_cpus, 1);
}

TEST_F(MachineLimitsTest, Version2LimitsOfAContainer) {
  write("proc/self/cgroup", "0::/\n");
  write("sys/fs/cgroup/memory.max", "314572800\n");
  write("sys/fs/cgroup/memory.current", "209715200\n");
  write("sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 83886080\nactive_file 20971520\n");
  write("sys/fs/cgroup/cpu.max", "50000 100000\n");
  write("sys/fs/cgroup/pids.max", "64\n");
  const MachineLimits limits = read();
  EXPECT_TRUE(limits.memory_is_limited);
  EXPECT_EQ(limits.memory_bytes, 300 * kMiB);
  EXPECT_EQ(limits.free_memory_bytes, 200 * kMiB);
  EXPECT_EQ(limits.num_cpus, 1);
  EXPECT_EQ(limits.max_tasks, 64);
  EXPECT_NE(describe(limits).find("cgroup"), std::string::npos);
}

TEST_F(MachineLimitsTest, TheTightestGroupAboveCounts) {
  write("proc/self/cgroup", "0::/a.slice/b.service\n");
  write("sys/fs/cgroup/a.slice/memory.max", "1073741824\n");
  write("sys/fs/cgroup/a.slice/memory.current", "0\n");
  write("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
  write("sys/fs/cgroup/a.slice/b.service/memory.high", "2147483648\n");
  write("sys/fs/cgroup/a.slice/b.service/pids.max", "max\n");
  const MachineLimits limits = read();
  EXPECT_EQ(limits.free_memory_bytes, 1024 * kMiB);
  EXPECT_FALSE(limits.max_tasks);
}

TEST_F(MachineLimitsTest, Version1AlsoWhereTheContainerSeesOnlyItsOwnGroup) {
  write("proc/self/cgroup",
        "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n8:pids:/docker/abc\n");
  for (const std::string& group : {std::string(), std::string("/docker/abc")}) {
    fs::remove_all(fs::path(root) / "sys");
    write("sys/fs/cgroup/memory" + group + "/memory.limit_in_bytes", "314572800\n");
    write("sys/fs/cgroup/memory" + group + "/memory.usage_in_bytes", "104857600\n");
    write("sys/fs/cgroup/memory" + group + "/memory.stat", "cache 5\ntotal_inactive_file 0\n");
    write("sys/fs/cgroup/cpu" + group + "/cpu.cfs_quota_us", "100000\n");
    write("sys/fs/cgroup/cpu" + group + "/cpu.cfs_period_us", "100000\n");
    write("sys/fs/cgroup/pids" + group + "/pids.max", "94\n");
    const MachineLimits limits = read();
    EXPECT_EQ(limits.free_memory_bytes, 200 * kMiB) << group;
    EXPECT_EQ(limits.num_cpus, 1) << group;
    EXPECT_EQ(limits.max_tasks, 94) << group;
  }
}

TEST_F(MachineLimitsTest, NumbersThatMeanNoLimitAreNone) {
  write("proc/self/cgroup", "4:memory:/\n1:cpu:/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_FALSE(read().memory_is_limited);
  EXPECT_FALSE(read().cpus_are_limited);
}

TEST(ThreadsTest, OmpNumThreadsIsHonoured) {
  ::setenv("OMP_NUM_THREADS", "3,2", 1);
  EXPECT_EQ(choose_num_threads(0), 3);
  EXPECT_EQ(choose_num_threads(5), 5);
  ::setenv("OMP_NUM_THREADS", "nonsense", 1);
  EXPECT_GE(choose_num_threads(0), 1);
  ::unsetenv("OMP_NUM_THREADS");
}

TEST(ThreadsTest, ThreadsAreCountedByStartingThem) {
  EXPECT_EQ(count_startable_threads(0), 0);
  EXPECT_EQ(count_startable_threads(8), 8);
}

}  // namespace
}  // namespace bicached
