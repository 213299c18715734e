#pragma once

#include <string_view>

namespace bicached {

/// Tells the service manager that started this process what it does: systemd's sd_notify (the state
/// as one datagram to the Unix socket that NOTIFY_SOCKET names), for units of `Type=notify`.
/// `state` is lines of NAME=VALUE: "READY=1", "STOPPING=1", "STATUS=loading the model".
///
/// Without NOTIFY_SOCKET nothing happens. What can't be sent is a warning in the log, for the
/// manager then takes the process to be starting still. Never blocks, never throws. Any thread.
void notify_service_manager(std::string_view state);

}  // namespace bicached
