#include "http/listeners.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "bicached/error.h"

namespace bicached {
namespace {

/// Many clients that come at once wait rather than being dropped.
constexpr int kBacklog = SOMAXCONN;

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

[[noreturn]] void fail(const std::string& where, const std::string& why, const char* param) {
  throw Error(ErrorCode::kInvalidSettings, "can't listen on " + where + ": " + why, param);
}

/// What bind's errno means to an operator.
std::string bind_reason(int error) {
  const std::string reason = std::strerror(error);
  if (error == EACCES) {
    return reason + " (ports below 1024 need root or the capability CAP_NET_BIND_SERVICE)";
  }
  if (error == EADDRINUSE) return reason + ": another program listens there";
  if (error == EADDRNOTAVAIL) return reason + ": the address is not this machine's";
  return reason;
}

AddressList resolve(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (error != 0) {
    fail(host,
         std::string(::gai_strerror(error)) +
             "; host is an address, a name, or a path that ends in .sock",
         "host");
  }
  return AddressList(list, &::freeaddrinfo);
}

void set_port(addrinfo& address, int port) {
  if (address.ai_family == AF_INET) {
    reinterpret_cast<sockaddr_in*>(address.ai_addr)->sin_port = htons(static_cast<uint16_t>(port));
  } else if (address.ai_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(address.ai_addr)->sin6_port =
        htons(static_cast<uint16_t>(port));
  }
}

int port_of(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  if (address.ss_family == AF_INET) {
    return ntohs(reinterpret_cast<sockaddr_in*>(&address)->sin_port);
  }
  return ntohs(reinterpret_cast<sockaddr_in6*>(&address)->sin6_port);
}

bool is_loopback(const addrinfo& address) {
  if (address.ai_family == AF_INET) {
    return ntohl(reinterpret_cast<const sockaddr_in*>(address.ai_addr)->sin_addr.s_addr) >> 24 ==
           127;
  }
  const in6_addr& ip = reinterpret_cast<const sockaddr_in6*>(address.ai_addr)->sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&ip);
}

Descriptor stream_socket(int family) {
  return Descriptor(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

/// Without SO_REUSEPORT, which would let a second server take half of the connections. None: errno.
Descriptor bind_and_listen(const addrinfo& address, bool both_families) {
  Descriptor socket = stream_socket(address.ai_family);
  const int fd = socket.get();
  if (fd < 0) return socket;
  const int on = 1, v6_only = both_families ? 0 : 1;
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (address.ai_family == AF_INET6) {
    ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, sizeof v6_only);
  }
  if (::bind(fd, address.ai_addr, address.ai_addrlen) == 0 && ::listen(fd, kBacklog) == 0) {
    return socket;
  }
  const int error = errno;
  socket = Descriptor();
  errno = error;
  return socket;
}

sockaddr_un unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    fail(path,
         "the path is longer than the " + std::to_string(sizeof address.sun_path - 1) +
             " bytes that a Unix socket's may have",
         "host");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

/// A socket file that a server which was killed left behind goes: nobody has it open. One in use
/// stays, also another kind of socket, and one that may not be connected to.
void remove_stale_socket(const std::string& path, const sockaddr_un& address) {
  struct stat about{};
  if (::lstat(path.c_str(), &about) != 0) return;
  if (!S_ISSOCK(about.st_mode))
    fail(path, "there is a file of this name that is no socket", "host");
  const Descriptor socket = stream_socket(AF_UNIX);
  const auto* named = reinterpret_cast<const sockaddr*>(&address);
  const bool is_stale =
      ::connect(socket.get(), named, sizeof address) != 0 && errno == ECONNREFUSED;
  if (!is_stale) fail(path, "another program listens there", "host");
  ::unlink(path.c_str());
}

}  // namespace

std::string Listeners::unix_path(const std::string& host) {
  if (host.starts_with("unix:")) return host.substr(5);
  const bool is_path = host.find('/') != std::string::npos || host.ends_with(".sock");
  return is_path ? host : "";
}

Listeners::Listeners(const std::vector<std::string>& hosts, int port) : port_(port) {
  if (hosts.empty()) {
    throw Error(ErrorCode::kInvalidSettings,
                "host is empty; allowed are addresses, names and paths of Unix sockets", "host");
  }
  try {
    for (const std::string& host : hosts) {
      const std::string path = unix_path(host);
      if (path.empty()) {
        listen_on_name(host, hosts.size() == 1);
      } else {
        listen_on_path(path);
      }
    }
  } catch (...) {
    close();
    throw;
  }
}

std::vector<int> Listeners::fds() const {
  std::vector<int> fds;
  for (const Descriptor& socket : sockets_) fds.push_back(socket.get());
  return fds;
}

void Listeners::close() {
  // The files first: a server that starts in between would find one that nobody listens on, and
  // put its own in that place.
  for (const std::string& path : paths_) ::unlink(path.c_str());
  sockets_.clear();
  paths_.clear();
}

void Listeners::listen_on_name(const std::string& host, bool alone) {
  const AddressList addresses = resolve(host, port_);
  int error = 0;
  size_t num_bound = 0;
  for (addrinfo* address = addresses.get(); address; address = address->ai_next) {
    if (address->ai_family != AF_INET && address->ai_family != AF_INET6) continue;
    set_port(*address, port_);
    Descriptor socket = bind_and_listen(*address, alone);
    if (socket.get() < 0) {
      // A name may have an address of a family that this machine has not.
      const bool is_absent = errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL;
      if (error == 0 || !is_absent) error = errno;
      if (!is_absent) break;
      continue;
    }
    ++num_bound;
    if (port_ == 0) port_ = port_of(socket.get());
    sockets_.push_back(std::move(socket));
    if (!is_loopback(*address) && open_host_.empty()) open_host_ = host;
  }
  const bool only_absent = error == EAFNOSUPPORT || error == EADDRNOTAVAIL;
  if (num_bound == 0 || (error != 0 && !only_absent)) {
    const char* param = error == EACCES || error == EADDRINUSE ? "port" : "host";
    fail(host + " port " + std::to_string(port_), bind_reason(error), param);
  }
}

void Listeners::listen_on_path(const std::string& path) {
  const sockaddr_un address = unix_address(path);
  remove_stale_socket(path, address);
  const int fd = sockets_.emplace_back(stream_socket(AF_UNIX)).get();
  if (fd < 0) fail(path, std::strerror(errno), "host");
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(fd, kBacklog) != 0) {
    fail(path, std::strerror(errno), "host");
  }
  paths_.push_back(path);
}

}  // namespace bicached
