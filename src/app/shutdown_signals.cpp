#include "app/shutdown_signals.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <utility>

#include "base/log.h"
#include "bicached/error.h"

namespace bicached {

ShutdownSignals::ShutdownSignals(std::function<void()> on_hangup)
    : on_hangup_(std::move(on_hangup)) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // A client that went away (SIGPIPE) and a file that may not grow (SIGXFSZ) are errors of write(),
  // no more.
  for (const int signal : {SIGPIPE, SIGXFSZ, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGIO}) {
    std::signal(signal, SIG_IGN);
  }
  signals_ = Descriptor(signalfd(-1, &signals, SFD_CLOEXEC));
  end_ = Descriptor(eventfd(0, EFD_CLOEXEC));
  if (signals_.get() < 0 || end_.get() < 0) {
    throw Error(ErrorCode::kInternal, "no file descriptor is left for signals");
  }
  thread_ = std::thread([this] { run(); });
}

ShutdownSignals::~ShutdownSignals() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the thread wakes as well.
  [[maybe_unused]] const ssize_t ignored = write(end_.get(), &one, sizeof one);
  thread_.join();
}

void ShutdownSignals::request() {
  requested_ = true;
  requested_.notify_all();
}

void ShutdownSignals::run() {
  bool had_one = false;
  while (true) {
    pollfd fds[] = {{signals_.get(), POLLIN, 0}, {end_.get(), POLLIN, 0}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) return;
    if (fds[1].revents) return;
    signalfd_siginfo signal{};
    if (!fds[0].revents || read(signals_.get(), &signal, sizeof signal) != sizeof signal) continue;
    if (signal.ssi_signo == SIGHUP) {
      contain("SIGHUP", on_hangup_);
      continue;
    }
    if (had_one) _exit(128 + static_cast<int>(signal.ssi_signo));
    if (!ready_) _exit(0);
    had_one = true;
    request();
  }
}

}  // namespace bicached
