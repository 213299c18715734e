#include "http/name_log.h"

#include "base/log.h"
#include "base/text_distance.h"

namespace bicached {

void NameLog::report(const std::vector<std::string>& names, std::string_view what,
                     const std::vector<std::string>& known_names) {
  if (names.empty()) return;
  std::optional<std::set<std::string>> known = names_.try_pop();
  if (!known) {
    if (started_.exchange(true)) return;
    known.emplace();
  }
  for (const std::string& name : names) {
    if (known->size() >= kMaxNames || !known->insert(log_escape(name, 64)).second) continue;
    const std::string near = nearest_name(name, known_names);
    log_info("request field \"" + log_escape(name, 64) + "\" " + std::string(what) +
             (near.empty() ? "" : "; did you mean " + near + "?"));
  }
  names_.try_push(std::move(*known));
}

}  // namespace bicached
