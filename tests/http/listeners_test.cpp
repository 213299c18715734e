#include "http/listeners.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

#include "bicached/error.h"

namespace bicached {
namespace {

bool is_socket(const std::string& path) {
  struct stat about{};
  return ::lstat(path.c_str(), &about) == 0 && S_ISSOCK(about.st_mode);
}

std::string failure_of(const std::vector<std::string>& hosts, int port = 0) {
  try {
    const Listeners listeners(hosts, port);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidSettings);
    return error.param() + ": " + error.what();
  }
  return "";
}

class ListenersTest : public testing::Test {
 protected:
  ~ListenersTest() override { ::unlink(path.c_str()); }
  int bind_to_path(int kind) const {
    const int fd = ::socket(AF_UNIX, kind, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    return fd;
  }
  const std::string path =
      testing::TempDir() + "bicached_listeners_" + std::to_string(::getpid()) + ".sock";
};

TEST_F(ListenersTest, SeveralAddressesShareAPort) {
  const Listeners listeners({"127.0.0.1", "127.0.0.2"}, 0);
  EXPECT_EQ(listeners.fds().size(), 2u);
  EXPECT_GT(listeners.port(), 0);
  EXPECT_NE(failure_of({"127.0.0.2"}, listeners.port()).find("port: "), std::string::npos);
}

TEST_F(ListenersTest, AUnixSocketGoesWithItsServer) {
  {
    const Listeners listeners({path, "127.0.0.1"}, 0);
    EXPECT_TRUE(is_socket(path));
    EXPECT_EQ(listeners.fds().size(), 2u);
    EXPECT_TRUE(listeners.open_host().empty());
    EXPECT_NE(failure_of({"unix:" + path}).find("another program"), std::string::npos);
  }
  EXPECT_FALSE(is_socket(path));
}

TEST_F(ListenersTest, ASocketThatWasLeftBehindIsReplacedAndAFileIsNot) {
  ::close(bind_to_path(SOCK_STREAM));  // as after kill -9: the file stays
  EXPECT_EQ(failure_of({path}), "");
  std::ofstream(path) << "notes";
  EXPECT_NE(failure_of({path}).find("no socket"), std::string::npos);
  EXPECT_TRUE(std::ifstream(path).good());
}

/// A system's log listens on one: whoever asks for its path by mistake must not take it away.
TEST_F(ListenersTest, ASocketOfAnotherKindStays) {
  for (const int kind : {SOCK_DGRAM, SOCK_SEQPACKET}) {
    const int fd = bind_to_path(kind);
    if (kind == SOCK_SEQPACKET) {
      ASSERT_EQ(::listen(fd, 1), 0);
    }
    EXPECT_NE(failure_of({path}).find("another program"), std::string::npos);
    EXPECT_TRUE(is_socket(path));
    ::close(fd);
    EXPECT_EQ(failure_of({path}), "") << "left behind now";
  }
}

TEST_F(ListenersTest, TheReasonIsTold) {
  EXPECT_EQ(failure_of({}).find("host: "), 0u);
  EXPECT_NE(failure_of({"no.such.host.invalid"}).find("host: "), std::string::npos);
  EXPECT_NE(failure_of({"192.0.2.1"}, 1).find("not this machine's"), std::string::npos);
  EXPECT_NE(failure_of({"/" + std::string(200, 'a')}).find("longer than"), std::string::npos);
  EXPECT_NE(failure_of({"/no/such/folder/x.sock"}).find("No such file"), std::string::npos);
}

TEST_F(ListenersTest, WhatOtherMachinesReachIsKnown) {
  EXPECT_TRUE(Listeners({"127.0.0.1"}, 0).open_host().empty());
  EXPECT_EQ(Listeners({"0.0.0.0"}, 0).open_host(), "0.0.0.0");
}

}  // namespace
}  // namespace bicached
