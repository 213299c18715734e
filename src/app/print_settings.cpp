#include <cstdio>
#include <memory>

#include "app/commands.h"

namespace bicached {

Command settings_command() {
  const auto markdown = std::make_shared<bool>(false);
  Command command{"settings", "Prints the settings that would take effect, as JSON",
                  [markdown](const Settings& settings) {
                    std::fputs(*markdown ? settings_to_markdown().c_str()
                                         : (settings_to_json(settings) + "\n").c_str(),
                               stdout);
                    return 0;
                  }};
  command.flags = {{"--markdown", "The table of all settings instead", markdown.get()}};
  command.computes = command.takes_model = false;
  return command;
}

}  // namespace bicached
