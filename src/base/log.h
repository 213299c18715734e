#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

namespace bicached {

/// Lines on standard error or in a file, one an event. Whatever a message holds, a line is one line
/// of valid UTF-8 without control characters, and with the format json one JSON object. A reader
/// that takes nothing (a full pipe) costs lines, which are counted, and never the time of who
/// writes one. This header names no logging library: torch ships its own
/// fmt, which can't be mixed with the system's (only log.cpp includes spdlog). Any thread.
enum class LogLevel { kDebug, kInfo, kWarn, kError };

/// `file`: lines are added to it; empty: standard error. Throws kInvalidSettings when it can't be
/// opened.
void log_setup(const std::string& level, const std::string& format, const std::string& file = "");
/// Opens the file anew, after it was renamed. Says so in the log when that fails.
void log_reopen();
/// Lines that were lost so far.
int64_t num_dropped_log_lines();
/// A line for which there is no memory is lost as well.
void log_line(LogLevel level, std::string_view message) noexcept;
/// "what: why", at level error. Needs no memory of its own.
void log_failure(std::string_view what, const char* why) noexcept;

inline void log_info(std::string_view m) noexcept { log_line(LogLevel::kInfo, m); }
inline void log_warn(std::string_view m) noexcept { log_line(LogLevel::kWarn, m); }
inline void log_error(std::string_view m) noexcept { log_line(LogLevel::kError, m); }

/// Does `action`; false: it threw, which is said in the log and goes no further. What stands on top
/// of a thread goes through here, and what must not fail: beyond it the process would end.
template <typename Action>
bool contain(std::string_view what, Action&& action) noexcept {
  try {
    action();
    return true;
  } catch (const std::exception& error) {
    log_failure(what, error.what());
  } catch (...) {
    log_failure(what, "an exception of an unknown kind");
  }
  return false;
}

/// `text` in plain sight: control characters, marks that change the direction of writing and bytes
/// that are no UTF-8 as \xNN, cut to `max_bytes`. For what clients and files contain.
std::string log_escape(std::string_view text, size_t max_bytes = 200);

}  // namespace bicached
