#pragma once

#include <atomic>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "bicached/channel.h"

namespace bicached {

/// Names request fields that are not honoured in the log, each once. At most `kMaxNames` of them: a
/// client chooses the names. Any thread.
class NameLog {
 public:
  /// `what`: the rest of the sentence. `known`: names of which the nearest may have been meant.
  void report(const std::vector<std::string>& names, std::string_view what,
              const std::vector<std::string>& known = {});

 private:
  static constexpr size_t kMaxNames = 200;
  // The set travels through the channel: who holds it may change it. Nobody waits for it: a name
  // that comes while another thread reports is reported the next time.
  Channel<std::set<std::string>> names_{1};
  std::atomic<bool> started_{false};
};

}  // namespace bicached
