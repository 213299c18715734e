#include "base/log.h"

#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>

#include "base/log_output.h"
#include "base/log_text.h"
#include "bicached/error.h"

namespace bicached {
namespace {

constexpr size_t kMaxMessageBytes = LogOutput::kMaxLineBytes - 200;  // time, level and quotes

/// By LogLevel.
constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                 spdlog::level::warn, spdlog::level::err};

/// Makes lines that are safe to read by eye and by machine, and writes them without waiting.
class Sink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  Sink(bool json, const std::string& path) : json_(json), output_(path) {}

  int64_t num_dropped() const { return num_dropped_; }
  void reopen() {
    const std::lock_guard<std::mutex> lock(mutex_);
    output_.reopen();
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    try {
      if (!say_dropped(message) || !write(message)) drop();
    } catch (const std::exception&) {  // the library would write a line of its own form
      drop();
    }
  }
  void flush_() override {}

 private:
  bool say_dropped(const spdlog::details::log_msg& before) {
    if (num_unsaid_ == 0) return true;
    const std::string said =
        std::to_string(num_unsaid_) + " log lines were dropped, since nobody read them";
    if (!write(spdlog::details::log_msg(before.time, {}, before.logger_name, spdlog::level::warn,
                                        said))) {
      return false;
    }
    num_unsaid_ = 0;
    return true;
  }
  bool write(const spdlog::details::log_msg& message) {
    const std::string_view given(message.payload.data(), message.payload.size());
    std::string text = json_ ? json_text(given) : visible_text(given);
    for (size_t length = given.size(); text.size() > kMaxMessageBytes;) {
      length = length / 4 * 3;  // an escape must stay whole: the message is cut, not the line
      const std::string cut = std::string(given.substr(0, length)) + "...";
      text = json_ ? json_text(cut) : visible_text(cut);
    }
    spdlog::details::log_msg safe = message;
    safe.payload = spdlog::string_view_t(text.data(), text.size());
    spdlog::memory_buf_t line;
    formatter_->format(safe, line);
    return output_.write({line.data(), line.size()});
  }
  void drop() {
    ++num_dropped_;
    ++num_unsaid_;
  }

  const bool json_;
  LogOutput output_;
  std::atomic<int64_t> num_dropped_{0};
  int64_t num_unsaid_ = 0;  // not yet told in the log
};

std::shared_ptr<Sink> current_sink() {
  const auto logger = spdlog::get("bicached");
  return logger ? std::dynamic_pointer_cast<Sink>(logger->sinks().front()) : nullptr;
}

}  // namespace

void log_setup(const std::string& level, const std::string& format, const std::string& file) {
  auto sink = std::make_shared<Sink>(format == "json", file);
  auto logger = std::make_shared<spdlog::logger>("bicached", sink);
  logger->set_pattern(format == "json"
                          ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","message":"%v"})"
                          : "%Y-%m-%d %H:%M:%S.%e %l %v");
  logger->set_level(spdlog::level::from_str(level));
  spdlog::drop("bicached");
  spdlog::register_logger(logger);
  spdlog::set_default_logger(logger);
}

void log_line(LogLevel level, std::string_view message) noexcept {
  try {
    spdlog::default_logger_raw()->log(kLevels[static_cast<size_t>(level)],
                                      spdlog::string_view_t(message.data(), message.size()));
  } catch (const std::exception&) {
    // No line: the sink counts those that reach it.
  }
}

void log_failure(std::string_view what, const char* why) noexcept {
  char text[500];
  std::snprintf(text, sizeof text, "%.*s: %s", static_cast<int>(what.size()), what.data(), why);
  log_error(text);
}

void log_reopen() {
  const std::shared_ptr<Sink> sink = current_sink();
  if (!sink) return;
  try {
    sink->reopen();
  } catch (const Error& error) {
    log_error(error.what());
  }
}

int64_t num_dropped_log_lines() {
  const std::shared_ptr<Sink> sink = current_sink();
  return sink ? sink->num_dropped() : 0;
}

std::string log_escape(std::string_view text, size_t max_bytes) {
  return visible_text(text.substr(0, max_bytes)) + (text.size() > max_bytes ? "..." : "");
}

}  // namespace bicached
