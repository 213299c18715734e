#include "app/example_request.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "http/listeners.h"

namespace bicached {
namespace {

using Json = nlohmann::ordered_json;

/// In single quotes of a shell.
std::string quote(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string(R"('\'')") : std::string(1, c);
  return out + "'";
}

Json example_messages(const std::string& model_folder) {
  const std::filesystem::path path = std::filesystem::path(model_folder) / "example_messages.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return Json::array({{{"role", "user"}, {"content", "Hello"}}});
  }
  Json messages = Json::array();
  for (const auto& message : read_json_file(path, ErrorCode::kInvalidModel)) {
    if (!message.is_object() || !message.contains("role") || !message.contains("content")) {
      throw Error(ErrorCode::kInvalidModel,
                  path.string() + ": must be a list of {\"role\": ..., \"content\": ...}");
    }
    messages.push_back({{"role", message["role"]}, {"content", message["content"]}});
  }
  return messages;
}

}  // namespace

std::string local_url(const std::string& host, int port) {
  const std::string path = Listeners::unix_path(host);
  if (!path.empty()) return "unix:" + path;
  std::string name = host;
  if (host == "0.0.0.0") name = "127.0.0.1";
  if (host == "::") name = "::1";
  if (name.find(':') != std::string::npos) name = "[" + name + "]";
  return "http://" + name + ":" + std::to_string(port);
}

std::string example_curl(const Settings& settings, const std::string& url,
                         const std::string& model_id, bool has_chat_template) {
  Json body = {{"model", model_id}};
  if (has_chat_template) {
    body["messages"] = example_messages(settings.model.path);
  } else {
    body["prompt"] = "Hello";
  }
  constexpr std::string_view kUnix = "unix:";
  std::string command =
      url.starts_with(kUnix)
          ? "curl --unix-socket " + quote(url.substr(kUnix.size())) + " http://localhost"
          : "curl " + url;
  command += has_chat_template ? "/v1/chat/completions" : "/v1/completions";
  command += " -H 'Content-Type: application/json'";
  if (!settings.server.api_key_file.empty()) {
    command +=
        " -H \"Authorization: Bearer $(head -n 1 " + quote(settings.server.api_key_file) + ")\"";
  }
  return command + " -d " + quote(body.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace bicached
