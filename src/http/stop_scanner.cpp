#include "http/stop_scanner.h"

#include <algorithm>

namespace bicached {

std::string StopScanner::push(std::string_view text, bool may_stop) {
  if (stopped_) return {};
  held_ += text;
  if (!may_stop) num_uncounted_ = held_.size();
  size_t cut = std::string::npos;  // of the stop string that was complete first
  size_t complete_at = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t first = num_uncounted_ < stop.size() ? 0 : num_uncounted_ - stop.size() + 1;
    const size_t at = held_.find(stop, first);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    if (end < complete_at || (end == complete_at && at < cut)) {
      complete_at = end;
      cut = at;
      found_ = stop;
    }
  }
  if (cut != std::string::npos) {
    stopped_ = true;
    return held_.substr(0, cut);
  }

  size_t keep = 0;
  for (const std::string& stop : stops_) {
    size_t length = std::min(held_.size(), stop.size() - 1);
    while (length > keep && !std::string_view(held_).ends_with(stop.substr(0, length))) --length;
    keep = std::max(keep, length);
  }
  std::string released = held_.substr(0, held_.size() - keep);
  held_.erase(0, released.size());
  num_uncounted_ -= std::min(num_uncounted_, released.size());
  return released;
}

std::string StopScanner::flush() {
  std::string rest;
  if (!stopped_) rest.swap(held_);
  return rest;
}

}  // namespace bicached
