#include "base/service_manager.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <string>

#include "base/log.h"

namespace bicached {
namespace {

/// A service manager's socket: `name` as NOTIFY_SOCKET has it, with @ for an abstract one.
class ManagerSocket {
 public:
  explicit ManagerSocket(const std::string& name) : name_(name) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    name.copy(address.sun_path, name.size());
    if (name[0] == '@') address.sun_path[0] = '\0';
    fd_ = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
    EXPECT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0) << name;
    ::setenv("NOTIFY_SOCKET", name.c_str(), 1);
  }
  ~ManagerSocket() {
    ::close(fd_);
    if (name_[0] != '@') ::unlink(name_.c_str());
    ::unsetenv("NOTIFY_SOCKET");
  }

  /// What came, a datagram at a time; empty: nothing.
  std::string receive() {
    char text[256];
    const ssize_t size = ::recv(fd_, text, sizeof text, MSG_DONTWAIT);
    return size < 0 ? std::string() : std::string(text, static_cast<size_t>(size));
  }

 private:
  const std::string name_;
  int fd_ = -1;
};

const std::string kSuffix = "bicached_notify_" + std::to_string(::getpid());

TEST(ServiceManagerTest, ASocketWithAPathGetsOneDatagramAState) {
  ManagerSocket manager(testing::TempDir() + kSuffix);
  notify_service_manager("READY=1\nSTATUS=serves demo");
  notify_service_manager("STOPPING=1");
  EXPECT_EQ(manager.receive(), "READY=1\nSTATUS=serves demo");
  EXPECT_EQ(manager.receive(), "STOPPING=1");
  EXPECT_EQ(manager.receive(), "");
}

TEST(ServiceManagerTest, AnAbstractSocketToo) {
  ManagerSocket manager("@" + kSuffix);
  notify_service_manager("READY=1");
  EXPECT_EQ(manager.receive(), "READY=1");
}

TEST(ServiceManagerTest, NoSocketOrOneThatNobodyReadsIsNoFailure) {
  ::unsetenv("NOTIFY_SOCKET");
  notify_service_manager("READY=1");
  for (const std::string& name :
       {std::string(), std::string("/nowhere/notify"), "/" + std::string(200, 'a')}) {
    ::setenv("NOTIFY_SOCKET", name.c_str(), 1);
    EXPECT_NO_THROW(notify_service_manager("READY=1"));
  }
  ::unsetenv("NOTIFY_SOCKET");
}

/// A manager that reads nothing must not stop the server.
TEST(ServiceManagerTest, AFullSocketDoesNotBlock) {
  ManagerSocket manager("@" + kSuffix + "_full");
  log_setup("error", "text");  // a warning each
  for (int i = 0; i < 2000; ++i) notify_service_manager("STATUS=" + std::string(200, 'x'));
  log_setup("info", "text");
  EXPECT_NE(manager.receive(), "");
}

}  // namespace
}  // namespace bicached
