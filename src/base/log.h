#pragma once

#include <string>
#include <string_view>

namespace bicached {

/// Lines on standard error, one an event. This header names no logging library: torch ships its own
/// fmt, which can't be mixed with the system's (only log.cpp includes spdlog). Any thread.
enum class LogLevel { kDebug, kInfo, kWarn, kError };

void log_setup(const std::string& level, const std::string& format);
void log_line(LogLevel level, std::string_view message);

inline void log_debug(std::string_view m) { log_line(LogLevel::kDebug, m); }
inline void log_info(std::string_view m) { log_line(LogLevel::kInfo, m); }
inline void log_warn(std::string_view m) { log_line(LogLevel::kWarn, m); }
inline void log_error(std::string_view m) { log_line(LogLevel::kError, m); }

/// `text` with control characters as \xNN, cut to `max_bytes`: for what clients and files contain.
std::string log_escape(std::string_view text, size_t max_bytes = 200);

}  // namespace bicached
