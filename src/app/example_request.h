#pragma once

#include <string>

#include "bicached/settings.h"

namespace bicached {

/// A curl command that works when pasted: for the last lines of start-up.
///
/// The messages are those of `example_messages.json` in the model folder (an array as in the chat
/// API), else a plain greeting: a model that knows only some tasks can bring a question it can
/// answer.
std::string example_curl(const Settings& settings, const std::string& url,
                         const std::string& model_id, bool has_chat_template);

/// "http://127.0.0.1:8080", "unix:/run/x.sock": where a client on this machine reaches the server.
std::string local_url(const std::string& host, int port);

}  // namespace bicached
