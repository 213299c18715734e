#pragma once

#include <cstdint>
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
void log_line(LogLevel level, std::string_view message);

inline void log_debug(std::string_view m) { log_line(LogLevel::kDebug, m); }
inline void log_info(std::string_view m) { log_line(LogLevel::kInfo, m); }
inline void log_warn(std::string_view m) { log_line(LogLevel::kWarn, m); }
inline void log_error(std::string_view m) { log_line(LogLevel::kError, m); }

/// `text` in plain sight: control characters, marks that change the direction of writing and bytes
/// that are no UTF-8 as \xNN, cut to `max_bytes`. For what clients and files contain.
std::string log_escape(std::string_view text, size_t max_bytes = 200);

}  // namespace bicached
