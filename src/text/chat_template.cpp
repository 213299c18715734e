#include "bicached/chat_template.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <set>

#include "base/json_file.h"
#include "base/utf8.h"
#include "bicached/error.h"
#include "text/chat_render.h"
#include "text/tokenizer_files.h"

namespace bicached {
namespace {

using jinja::Kind;
using jinja::TemplateError;
using jinja::Value;

constexpr size_t kMaxMessages = 4096;
// Private-use characters around a mark's digits: no filter or split of a template looks for
// them.
constexpr std::string_view kBegin = "\xF3\xB0\xA0\x80", kEnd = "\xF3\xB0\xA0\x81";

/// Marks around tokens' texts in messages while the template runs.
class TokenMarks {
 public:
  explicit TokenMarks(const std::vector<std::string>& texts) : texts_(texts) {
    // Longest first, so that a token that contains another one is taken whole.
    std::sort(texts_.begin(), texts_.end(),
              [](const auto& a, const auto& b) { return a.size() > b.size(); });
    std::random_device random;  // unguessable: a message can't bring a mark along
    for (int i = 0; i < 2; ++i) nonce_ += std::to_string(10000000u + random() % 90000000u);
    open_ = std::string(kBegin) + nonce_ + '1' + std::string(kEnd);
    close_ = std::string(kBegin) + nonce_ + '2' + std::string(kEnd);
    for (const std::string& text : texts_) first_bytes_[static_cast<unsigned char>(text[0])] = true;
  }

  Value disarm(const Value& v) const {
    switch (v.kind()) {
      case Kind::kString: return Value::string(disarm(v.text()));
      case Kind::kList: {
        jinja::Items items;
        for (const Value& item : v.items()) items.push_back(disarm(item));
        return Value::list(std::move(items));
      }
      case Kind::kDict: {
        jinja::Members members;
        for (const auto& [key, value] : v.members()) members.emplace_back(key, disarm(value));
        return Value::dict(std::move(members));
      }
      default: return v;
    }
  }

  /// Cuts at the marks. A token's text behind an opening or before a closing mark is the message's;
  /// where a template has cut at the text itself, only the marks are left, and are seams.
  std::vector<TextPiece> split(const std::string& text) const {
    std::vector<TextPiece> pieces;
    bool behind_open = false;
    size_t done = 0;
    const auto add = [&](const std::string& part, bool before_close) {
      if (part.find(nonce_.substr(0, 8)) != std::string::npos ||
          part.find(nonce_.substr(8)) != std::string::npos) {
        jinja::fail_runtime(
            "the chat template cuts or changes a special token's text in a message");
      }
      const bool is_token = (behind_open || before_close) &&
                            std::find(texts_.begin(), texts_.end(), part) != texts_.end();
      if (!part.empty()) pieces.push_back({part, !is_token});
    };
    for (;;) {
      const size_t opening = text.find(open_, done), closing = text.find(close_, done);
      const size_t at = std::min(opening, closing);
      if (at == std::string::npos) break;
      add(text.substr(done, at - done), closing < opening);
      behind_open = opening < closing;
      done = at + open_.size();
    }
    add(text.substr(done), false);
    return pieces;
  }

 private:
  std::string disarm(const std::string& text) const {
    std::string out;
    for (size_t pos = 0; pos < text.size();) {
      const size_t token =
          first_bytes_[static_cast<unsigned char>(text[pos])] ? token_at(text, pos) : texts_.size();
      if (token == texts_.size()) {
        out += text[pos++];
      } else {
        out.append(open_).append(texts_[token]).append(close_);
        pos += texts_[token].size();
      }
    }
    return out;
  }

  size_t token_at(const std::string& text, size_t pos) const {
    for (size_t i = 0; i < texts_.size(); ++i) {
      if (text.compare(pos, texts_[i].size(), texts_[i]) == 0) return i;
    }
    return texts_.size();
  }

  std::vector<std::string> texts_;
  std::string nonce_, open_, close_;  // 16 digits; the marks have the same length
  bool first_bytes_[256] = {};
};

void add_member(jinja::Members& members, std::string name, Value value) {
  members.emplace_back(Value::string(std::move(name)), std::move(value));
}

/// Null members go, and the three names of a reasoning text are one.
Value prepared(const Value& messages) {
  if (!messages.is(Kind::kList)) jinja::fail_runtime("messages must be a list");
  if (messages.items().empty()) {
    jinja::fail_runtime(
        "Cannot apply chat template to an empty conversation. Provide at least one message.");
  }
  jinja::Items out;
  for (const Value& message : messages.items()) {
    if (!message.is(Kind::kDict)) jinja::fail_runtime("each message must be an object");
    jinja::Members members;
    for (const auto& member : message.members()) {
      if (!member.second.is(Kind::kNone)) members.push_back(member);
    }
    constexpr std::string_view kNames[] = {"reasoning_content", "thinking", "reasoning"};
    const Value kept = Value::dict(members);
    for (const std::string_view name : kNames) {
      const Value* reasoning = kept.member(name);
      if (!reasoning) continue;
      for (const std::string_view other : kNames) {
        if (!kept.member(other)) add_member(members, std::string(other), *reasoning);
      }
      break;
    }
    out.push_back(Value::dict(std::move(members)));
  }
  return Value::list(std::move(out));
}

Value globals_of(const ChatInput& input, const Value& messages) {
  jinja::Members out;
  add_member(out, "messages", messages);
  add_member(out, "tools", input.tools);
  add_member(out, "documents", Value::none());
  add_member(out, "add_generation_prompt", Value::boolean(input.add_generation_prompt));
  if (!input.bos_token.is(Kind::kUndefined)) add_member(out, "bos_token", input.bos_token);
  if (!input.eos_token.is(Kind::kUndefined)) add_member(out, "eos_token", input.eos_token);
  for (const auto& member : input.extra) out.push_back(member);
  return Value::dict(std::move(out));
}

[[noreturn]] void refuse_request(const std::string& message) {
  throw Error(ErrorCode::kInvalidRequest, message, "messages");
}

Value value_of(const nlohmann::json& json) {
  if (json.is_object()) {
    jinja::Members members;
    for (const auto& [key, value] : json.items()) add_member(members, key, value_of(value));
    return Value::dict(std::move(members));
  }
  if (json.is_array()) {
    jinja::Items items;
    for (const auto& value : json) items.push_back(value_of(value));
    return Value::list(std::move(items));
  }
  if (json.is_string()) return Value::string(json.get<std::string>());
  if (json.is_boolean()) return Value::boolean(json.get<bool>());
  if (json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX) {
    return Value::big_integer(json.dump());
  }
  if (json.is_number_integer()) return Value::integer(json.get<int64_t>());
  if (json.is_number()) return Value::number(json.get<double>());
  return Value::none();
}

/// Calls with their arguments as an object where they are one, which templates expect.
void add_tool_members(const ChatMessage& message, jinja::Members& members) {
  if (!message.tool_call_id.empty()) {
    add_member(members, "tool_call_id", Value::string(message.tool_call_id));
  }
  if (!message.name.empty()) add_member(members, "name", Value::string(message.name));
  if (message.tool_calls.empty()) return;
  nlohmann::json calls = nlohmann::json::parse(message.tool_calls);
  for (nlohmann::json& call : calls) {
    nlohmann::json& arguments = call["function"]["arguments"];
    if (!arguments.is_string()) continue;
    nlohmann::json parsed = nlohmann::json::parse(arguments.get<std::string>(), nullptr, false);
    if (parsed.is_object()) arguments = std::move(parsed);
  }
  add_member(members, "tool_calls", value_of(calls));
}

class JinjaChatTemplate final : public ChatTemplate {
 public:
  JinjaChatTemplate(const std::string& source, const std::string& bos_token,
                    const std::string& eos_token, const std::vector<AddedTokenText>& added_tokens)
      : template_(source),
        disarmed_(texts_to_disarm(added_tokens, source)),
        knows_tools_(source.find("tool_calls") != std::string::npos) {
    if (!bos_token.empty()) bos_token_ = Value::string(bos_token);
    if (!eos_token.empty()) eos_token_ = Value::string(eos_token);
    choose_content_form();
  }

  RenderedChat render(const std::vector<ChatMessage>& messages,
                      bool add_generation_prompt) const override {
    if (messages.empty() || messages.size() > kMaxMessages) {
      refuse_request("messages must hold 1 to " + std::to_string(kMaxMessages) + " messages, not " +
                     std::to_string(messages.size()));
    }
    for (const ChatMessage& message : messages) {
      if (!is_valid_utf8(message.role) || !is_valid_utf8(message.content))
        refuse_request("messages must be valid UTF-8");
    }
    try {
      return {pieces(messages, add_generation_prompt)};
    } catch (const TemplateError& e) {
      if (e.failure() == jinja::Failure::kRaised) refuse_request(e.what());
      refuse_request(std::string("the model's chat template can't render these messages: ") +
                     e.what());
    }
  }

  bool knows_tools() const override { return knows_tools_; }

 private:
  std::vector<TextPiece> pieces(const std::vector<ChatMessage>& messages,
                                bool add_generation_prompt) const {
    jinja::Items list;
    for (const ChatMessage& message : messages) {
      Value content = Value::string(message.content);
      if (typed_roles_.contains(message.role)) {
        content = Value::list({Value::dict(
            {{Value::string("type"), Value::string("text")}, {Value::string("text"), content}})});
      }
      jinja::Members members{{Value::string("role"), Value::string(message.role)},
                             {Value::string("content"), content}};
      if (knows_tools_) add_tool_members(message, members);
      list.push_back(Value::dict(std::move(members)));
    }
    ChatInput input;
    input.messages = Value::list(std::move(list));
    input.add_generation_prompt = add_generation_prompt;
    input.bos_token = bos_token_;
    input.eos_token = eos_token_;
    return render_chat_pieces(template_, std::move(input), disarmed_);
  }

  /// What is left of a short conversation: roles whose text is not in it. Nothing: the template
  /// itself refuses it.
  std::optional<std::set<std::string>> lost_roles(const std::vector<ChatMessage>& messages) const {
    std::string text;
    try {
      text = RenderedChat{pieces(messages, true)}.text();
    } catch (const TemplateError& e) {
      if (e.failure() == jinja::Failure::kRaised) return std::nullopt;
      throw;
    }
    std::set<std::string> lost;
    for (const ChatMessage& message : messages) {
      if (text.find(message.content) == std::string::npos) lost.insert(message.role);
    }
    return lost;
  }

  /// A template that can't render a plain question would refuse every request: say so at start. One
  /// that takes a content apart into typed parts gets such parts; it would lose a plain text
  /// without a word.
  void choose_content_form() {
    const std::vector<ChatMessage> question{{"user", "Quokka 4711"}};
    const std::vector<ChatMessage> conversation{{"system", "Axolotl 1147"},
                                                {"user", "Quokka 4711"},
                                                {"assistant", "Tapir 7114"},
                                                {"user", "Okapi 1714"}};
    const std::vector<ChatMessage> without_system(conversation.begin() + 1, conversation.end());
    bool loses_user = false;
    for (const auto& messages : {conversation, without_system, question}) {
      const std::optional<std::set<std::string>> lost = lost_in_best_form(messages);
      if (!lost) continue;  // the template refuses it: a system message, for one
      loses_user = lost->contains("user");
      if (!loses_user) return;
    }
    if (loses_user) {
      throw TemplateError(jinja::Failure::kRuntime, "it does not write what a user says");
    }
  }

  static std::set<std::string> all_roles(const std::vector<ChatMessage>& messages) {
    std::set<std::string> roles;
    for (const ChatMessage& message : messages) roles.insert(message.role);
    return roles;
  }

  /// Finds out which roles want parts, and what is lost even so.
  std::optional<std::set<std::string>> lost_in_best_form(const std::vector<ChatMessage>& messages) {
    std::optional<std::set<std::string>> plain;
    std::exception_ptr failure;
    typed_roles_.clear();
    try {
      plain = lost_roles(messages);
      if (plain && plain->empty()) return plain;
      typed_roles_ = plain ? *plain : all_roles(messages);  // it may refuse plain text in words
    } catch (const TemplateError&) {
      failure = std::current_exception();
      typed_roles_ = all_roles(messages);
    }
    try {
      const std::optional<std::set<std::string>> typed = lost_roles(messages);
      if (typed) {
        for (const std::string& role : *typed) typed_roles_.erase(role);  // parts don't help either
        return typed;
      }
    } catch (const TemplateError&) {
      // What follows holds for plain text.
    }
    typed_roles_.clear();
    if (failure) std::rethrow_exception(failure);
    return plain;
  }

  jinja::Template template_;
  std::vector<std::string> disarmed_;
  const bool knows_tools_;
  Value bos_token_, eos_token_;
  std::set<std::string> typed_roles_;  // their content goes as a list of parts
};

/// A token of tokenizer_config.json: a text, or an object with `content`; empty when absent.
std::string token_text_of(const nlohmann::json& config, const char* name) {
  const auto it = config.find(name);
  if (!config.is_object() || it == config.end()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (it->is_object() && it->contains("content") && (*it)["content"].is_string())
    return (*it)["content"];
  return "";
}

std::string template_of(const nlohmann::json& config, const std::string& path) {
  const auto it = config.find("chat_template");
  if (it == config.end() || it->is_null()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (it->is_array()) {
    for (const auto& named : *it) {
      if (named.is_object() && named.value("name", nlohmann::json()) == "default" &&
          named.contains("template") && named["template"].is_string()) {
        return named["template"];
      }
    }
  }
  throw Error(ErrorCode::kInvalidModel,
              path + ": chat_template must be a text or a list with one named \"default\"");
}

}  // namespace

std::string RenderedChat::text() const {
  std::string out;
  for (const TextPiece& piece : pieces) out += piece.text;
  return out;
}

std::string render_chat(const jinja::Template& source, const ChatInput& input,
                        const jinja::RenderOptions& options) {
  return source.render(globals_of(input, prepared(input.messages)), options);
}

std::vector<TextPiece> render_chat_pieces(const jinja::Template& source, ChatInput input,
                                          const std::vector<std::string>& disarmed,
                                          const jinja::RenderOptions& options) {
  const TokenMarks marks(disarmed);
  input.messages = marks.disarm(input.messages);
  return marks.split(render_chat(source, input, options));
}

std::vector<std::string> texts_to_disarm(const std::vector<AddedTokenText>& tokens,
                                         const std::string& template_source) {
  std::vector<std::string> out;
  for (const AddedTokenText& token : tokens) {
    bool blank = true;
    for (size_t pos = 0; blank && pos < token.text.size();)
      blank = is_white_space(next_code_point(token.text, pos));
    if (!blank && (token.special || template_source.find(token.text) != std::string::npos))
      out.push_back(token.text);
  }
  return out;
}

std::unique_ptr<ChatTemplate> ChatTemplate::compile(const std::string& source,
                                                    const std::string& bos_token,
                                                    const std::string& eos_token,
                                                    std::vector<AddedTokenText> added_tokens) {
  if (!is_valid_utf8(source))
    throw Error(ErrorCode::kInvalidModel, "the chat template is not valid UTF-8");
  try {
    return std::make_unique<JinjaChatTemplate>(source, bos_token, eos_token, added_tokens);
  } catch (const TemplateError& e) {
    throw Error(ErrorCode::kInvalidModel,
                std::string("the chat template can't be used: ") + e.what());
  }
}

std::unique_ptr<ChatTemplate> ChatTemplate::load(const std::string& folder,
                                                 const Tokenizer& tokenizer) {
  const std::string config_path = folder + "/tokenizer_config.json";
  const std::string template_path = folder + "/chat_template.jinja";
  const nlohmann::json config = read_model_json(config_path);
  if (!config.is_object())
    throw Error(ErrorCode::kInvalidModel, config_path + ": the JSON is not an object");
  const bool has_file = std::filesystem::exists(template_path);
  const std::string source = has_file
                                 ? read_text_file(template_path, jinja::Template::kMaxSourceBytes,
                                                  ErrorCode::kInvalidModel)
                                 : template_of(config, config_path);
  if (source.empty()) return nullptr;
  // Folders from before added_tokens_decoder name their tokens in a file of its own.
  const nlohmann::json map = read_model_json(folder + "/special_tokens_map.json");
  const bool is_old = !config.contains("added_tokens_decoder");
  const auto token = [&](const char* name) {
    const std::string first = token_text_of(is_old ? map : config, name);
    return first.empty() ? token_text_of(is_old ? config : map, name) : first;
  };
  try {
    return compile(source, token("bos_token"), token("eos_token"), tokenizer.added_token_texts());
  } catch (const Error& e) {
    throw Error(ErrorCode::kInvalidModel,
                (has_file ? template_path : config_path) + ": " + e.what());
  }
}

}  // namespace bicached
