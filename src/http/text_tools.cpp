#include "base/utf8.h"
#include "bicached/error.h"
#include "config/json_fields.h"
#include "http/api.h"
#include "text/chat_prompt.h"

namespace bicached {
namespace {

/// A token's text, or its bytes where they are no text of their own.
OrderedJson piece_of(const Tokenizer& tokenizer, TokenId token) {
  const std::string bytes = tokenizer.token_bytes(token, false);
  if (is_valid_utf8(bytes)) return bytes;
  OrderedJson list = OrderedJson::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return list;
}

/// Each as text at once: the pieces of a body of 4 MB take two gigabytes as a tree.
std::string list_of_pieces(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  std::string text = "[";
  for (const TokenId id : ids) {
    if (text.size() > 1) text += ',';
    text += dump_json({{"id", id}, {"piece", piece_of(tokenizer, id)}});
  }
  return text + "]";
}

}  // namespace

HttpReply Api::tokenize(const HttpRequest& request) {
  const Backend& loaded = backend();
  const nlohmann::json json = parse_body(request.body);
  Fields fields(json);
  std::vector<TokenId> ids;
  if (fields.find("messages")) {
    const std::vector<ChatMessage> messages = read_messages(fields);
    const ChatEnd end = read_chat_end(fields, messages);
    ids = encode_messages(messages, end, loaded.chat_template, *loaded.tokenizer).ids;
  } else {
    const std::optional<std::string> prompt = fields.text("prompt");
    const std::optional<std::string> content = fields.text("content");
    if (!content && !prompt) {
      throw Error(ErrorCode::kInvalidRequest, "content is missing (or prompt, or messages)",
                  "content");
    }
    ids = loaded.tokenizer->encode(content ? *content : *prompt, true);
    if (fields.boolean("add_special").value_or(false)) {
      ids = loaded.tokenizer->add_special(std::move(ids));
    }
  }
  const bool with_pieces = fields.boolean("with_pieces").value_or(false);
  HttpReply reply;
  reply.body = R"({"tokens":)";
  reply.body += with_pieces ? list_of_pieces(*loaded.tokenizer, ids) : dump_json(ids);
  reply.body += R"(,"count":)" + std::to_string(ids.size()) + R"(,"max_model_len":)" +
                std::to_string(loaded.engine->model().max_length) + "}";
  return reply;
}

HttpReply Api::detokenize(const HttpRequest& request) {
  const Backend& loaded = backend();
  const nlohmann::json json = parse_body(request.body);
  Fields fields(json);
  const nlohmann::json& list = fields.require("tokens");
  if (!list.is_array()) throw_wrong_type("tokens", "a list of token ids", list);
  const std::vector<TokenId> ids =
      read_token_ids(list, "tokens", loaded.engine->model().vocab_size);
  OrderedJson body;
  body["content"] = loaded.tokenizer->decode(ids, false);
  return json_reply(body);
}

HttpReply Api::apply_template(const HttpRequest& request) {
  const Backend& loaded = backend();
  const nlohmann::json json = parse_body(request.body);
  Fields fields(json);
  const std::vector<ChatMessage> messages = read_messages(fields);
  const ChatEnd end = read_chat_end(fields, messages);
  OrderedJson body;
  body["prompt"] = render_messages(messages, end, loaded.chat_template);
  return json_reply(body);
}

}  // namespace bicached
