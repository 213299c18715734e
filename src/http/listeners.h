#pragma once

#include <string>
#include <vector>

#include "base/descriptor.h"

namespace bicached {

/// The sockets a server listens on: IP addresses with one port, names (all their addresses), and
/// Unix sockets (a path with '/', ending in .sock, or behind "unix:").
class Listeners {
 public:
  /// Throws kInvalidSettings with the system's reason, naming host or port. `port` 0: a free one,
  /// the same for all addresses.
  Listeners(const std::vector<std::string>& hosts, int port);
  /// Closes them and removes the files of Unix sockets.
  ~Listeners() { close(); }
  Listeners(const Listeners&) = delete;
  Listeners& operator=(const Listeners&) = delete;

  std::vector<int> fds() const;
  int port() const { return port_; }
  /// Where other machines reach it; empty: from this machine alone.
  const std::string& open_host() const { return open_host_; }
  void close();

  /// The path of a Unix socket; empty: `host` is an address or a name.
  static std::string unix_path(const std::string& host);

 private:
  void listen_on_name(const std::string& host, bool alone);
  void listen_on_path(const std::string& path);

  std::vector<Descriptor> sockets_;
  std::vector<std::string> paths_;
  int port_;
  std::string open_host_;
};

}  // namespace bicached
