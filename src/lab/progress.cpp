#include "lab/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace bicached {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Progress::Progress(std::string label, int64_t total, std::string unit)
    : label_(std::move(label)),
      total_(std::max<int64_t>(total, 1)),
      unit_(std::move(unit)),
      is_terminal_(isatty(STDERR_FILENO) == 1) {}

void Progress::show(int64_t done, const std::string& note) {
  if (first_done_ < 0) first_done_ = done;
  const bool is_last = done >= total_;
  std::string text = std::to_string(done) + " of " + std::to_string(total_) + " " + unit_ +
                     (note.empty() ? "" : ", ") + note;
  if (!is_terminal_) {
    const int64_t tenth = done * 10 / total_;
    if (tenth == shown_tenth_) return;
    shown_tenth_ = tenth;
    std::fprintf(stderr, "%s: %s\n", label_.c_str(), text.c_str());
    return;
  }
  // Ten times a second are enough for a reader.
  if (!is_last && seconds_since(shown_at_) < 0.1) return;
  shown_at_ = Clock::now();
  if (!is_last && done > first_done_) {
    const double left_s = seconds_since(start_) / static_cast<double>(done - first_done_) *
                          static_cast<double>(total_ - done);
    text += ", " + std::to_string(static_cast<int64_t>(left_s)) + " s left";
  }
  show_bar(done, text);
  if (is_last) std::fputs("\n", stderr);
  std::fflush(stderr);
}

void Progress::show_bar(int64_t done, const std::string& text) const {
  constexpr int64_t kCells = 24;
  const size_t full = static_cast<size_t>(std::min(done, total_) * kCells / total_);
  const std::string bar = std::string(full, '#') + std::string(kCells - full, '.');
  std::fprintf(stderr, "\r%s: [%s] %s\x1b[K", label_.c_str(), bar.c_str(), text.c_str());
}

}  // namespace bicached
