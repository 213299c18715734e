#include "http/responses.h"

#include <algorithm>
#include <cmath>

#include "base/utf8.h"
#include "base/version.h"

namespace bicached {
namespace {

const char* finish_text(FinishReason reason) {
  return reason == FinishReason::kLength ? "length" : "stop";
}

/// JSON has no infinity; OpenAI writes this for "never", and null for "there is none".
OrderedJson finite_logprob(float logprob) {
  constexpr double kNever = -9999.0;
  if (std::isnan(logprob)) return nullptr;
  return std::max(static_cast<double>(logprob), kNever);
}

OrderedJson bytes_of(const std::string& text) {
  OrderedJson bytes = OrderedJson::array();
  for (char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

}  // namespace

ResponseWriter::ResponseWriter(const Job& job, const Tokenizer& tokenizer,
                               const std::string& request_id)
    : job_(job),
      tokenizer_(tokenizer),
      id_((job.dialect == Dialect::kChat ? "chatcmpl-" : "cmpl-") + request_id),
      created_(unix_time()),
      num_characters_(job.canvases.size()),
      has_logprobs_(job.canvases.size()) {}

ChoiceDelta ResponseWriter::echo(size_t index) const {
  ChoiceDelta delta;
  if (!job_.echo) return delta;
  if (job_.prompt_scores.empty()) {
    delta.text = tokenizer_.decode(job_.canvases[index].prompt_ids, true);
    return delta;
  }
  Detokenizer detokenizer(tokenizer_, true);
  const size_t prompt = index / static_cast<size_t>(job_.choices_per_prompt);
  for (const DecidedToken& token : job_.prompt_scores[prompt]) {
    delta.tokens.push_back({token, delta.text.size()});
    delta.text += detokenizer.push(token.token);
  }
  delta.text += detokenizer.flush();
  return delta;
}

// --- Parts -------------------------------------------------------------------------------------

OrderedJson ResponseWriter::head(const char* object) const {
  OrderedJson body;
  body["id"] = id_;
  body["object"] = object;
  body["created"] = created_;
  body["model"] = job_.model;
  body["system_fingerprint"] = std::string("bicached-") + version();
  return body;
}

OrderedJson ResponseWriter::usage(const std::vector<Choice>& choices) const {
  const int completion = total_completion_tokens(choices);
  OrderedJson out;
  out["prompt_tokens"] = job_.prompt_tokens;
  out["completion_tokens"] = completion;
  out["total_tokens"] = job_.prompt_tokens + completion;
  out["prompt_tokens_details"]["cached_tokens"] = total_cached_tokens(job_, choices);
  return out;
}

OrderedJson ResponseWriter::diffusion(const std::vector<Choice>& choices) const {
  int64_t forwards = 0, refreshes = 0, row_layers = 0;
  const GenerationStats* reuse = &choices.front().stats();  // of the choice that reused most
  for (const Choice& choice : choices) {
    const GenerationStats& stats = choice.stats();
    forwards += stats.num_forwards;
    refreshes += stats.num_refreshes;
    row_layers += stats.row_layers;
    if (reuse->cache != "hit" && (stats.cache == "hit" || reuse->cache == "off")) reuse = &stats;
  }
  OrderedJson out;
  out["forwards"] = forwards;
  out["refreshes"] = refreshes;
  out["row_layers"] = row_layers;
  out["tokens_per_forward"] =
      forwards == 0
          ? 0.0
          : static_cast<double>(total_completion_tokens(choices)) / static_cast<double>(forwards);
  out["prefix_len"] = reuse->prefix_len;
  out["depth"] = reuse->depth;
  out["refresh_depth"] = reuse->refresh_depth;
  out["cache"] = reuse->cache;
  return out;
}

std::string ResponseWriter::display(TokenId token) const {
  return tokenizer_.decode({token}, false);
}

OrderedJson ResponseWriter::chat_logprobs(const ChoiceDelta& delta) const {
  const auto entry = [&](TokenId token, float logprob) {
    OrderedJson out;
    out["token"] = display(token);
    out["logprob"] = finite_logprob(logprob);
    out["bytes"] = bytes_of(tokenizer_.token_bytes(token, false));
    return out;
  };
  OrderedJson content = OrderedJson::array();
  for (const ChoiceToken& t : delta.tokens) {
    OrderedJson one = entry(t.token.token, t.token.logprob);
    one["top_logprobs"] = OrderedJson::array();
    for (const TokenLogprob& top : t.token.top) {
      one["top_logprobs"].push_back(entry(top.token, top.logprob));
    }
    content.push_back(std::move(one));
  }
  OrderedJson out;
  out["content"] = std::move(content);
  out["refusal"] = nullptr;
  return out;
}

/// OpenAI's older form: parallel lists; the offsets count characters of the choice's text.
OrderedJson ResponseWriter::text_logprobs(size_t index, const ChoiceDelta& delta) {
  OrderedJson out;
  for (const char* name : {"text_offset", "token_logprobs", "tokens", "top_logprobs"}) {
    out[name] = OrderedJson::array();
  }
  size_t offset = num_characters_[index];
  size_t seen = 0;
  for (const ChoiceToken& t : delta.tokens) {
    const size_t until = std::min(t.text_begin - delta.text_begin, delta.text.size());
    offset += count_code_points(std::string_view(delta.text).substr(seen, until - seen));
    seen = until;
    out["text_offset"].push_back(offset);
    out["tokens"].push_back(t.token.is_end ? "" : display(t.token.token));  // it is no text
    out["token_logprobs"].push_back(finite_logprob(t.token.logprob));
    OrderedJson top = OrderedJson::object();
    for (const TokenLogprob& other : t.token.top) {
      top[display(other.token)] = finite_logprob(other.logprob);
    }
    out["top_logprobs"].push_back(std::move(top));
  }
  num_characters_[index] += count_code_points(delta.text);
  return out;
}

OrderedJson ResponseWriter::logprobs(size_t index, const ChoiceDelta& delta) {
  if (job_.num_logprobs < 0) return nullptr;
  has_logprobs_[index] = 1;
  return chat() ? chat_logprobs(delta) : text_logprobs(index, delta);
}

// --- Plain -------------------------------------------------------------------------------------

/// Each choice as text at once: the log-probabilities of many take a gigabyte as a tree.
std::string ResponseWriter::plain(const std::vector<Choice>& choices,
                                  const std::vector<ChoiceDelta>& wholes) {
  std::string body = dump_json(head(chat() ? "chat.completion" : "text_completion"));
  body.back() = ',';
  body += "\"choices\":[";
  for (size_t i = 0; i < choices.size(); ++i) {
    OrderedJson choice;
    choice["index"] = i;
    ChoiceDelta whole = echo(i);
    for (ChoiceToken token : wholes[i].tokens) {
      token.text_begin += whole.text.size();
      whole.tokens.push_back(std::move(token));
    }
    whole.text += wholes[i].text;
    if (chat()) {
      OrderedJson& message = choice["message"];
      message["role"] = "assistant";
      message["content"] = whole.text;
      message["refusal"] = nullptr;
    } else {
      choice["text"] = whole.text;
    }
    choice["logprobs"] = logprobs(i, whole);
    choice["finish_reason"] = finish_text(choices[i].finish());
    if (!choices[i].gaps().empty()) choice["infill"] = choices[i].gaps();
    body += (i > 0 ? "," : "") + dump_json(choice);
  }
  const OrderedJson rest{{"usage", usage(choices)}, {"diffusion", diffusion(choices)}};
  return body + "]," + dump_json(rest).substr(1);
}

// --- Streamed ----------------------------------------------------------------------------------

std::string ResponseWriter::chunk(OrderedJson choice) const {
  OrderedJson body = head(chat() ? "chat.completion.chunk" : "text_completion");
  body["choices"] = OrderedJson::array();
  body["choices"].push_back(std::move(choice));
  if (job_.include_usage) body["usage"] = nullptr;
  return data_event(body);
}

/// The first chunk of a choice: the role in chat, the echoed prompt (or nothing) in raw text.
std::string ResponseWriter::begin(size_t index) {
  OrderedJson choice;
  choice["index"] = index;
  if (chat()) {
    OrderedJson& delta = choice["delta"];
    delta["role"] = "assistant";
    delta["content"] = "";
    delta["refusal"] = nullptr;
  } else {
    const ChoiceDelta before = echo(index);
    choice["text"] = before.text;
    if (before.tokens.empty()) {
      num_characters_[index] = count_code_points(before.text);
    } else {
      choice["logprobs"] = logprobs(index, before);
    }
  }
  if (!choice.contains("logprobs")) choice["logprobs"] = nullptr;
  choice["finish_reason"] = nullptr;
  return chunk(std::move(choice));
}

std::string ResponseWriter::text(size_t index, const ChoiceDelta& delta) {
  if (delta.text.empty() && (job_.num_logprobs < 0 || delta.tokens.empty())) return "";
  OrderedJson choice;
  choice["index"] = index;
  if (chat()) {
    choice["delta"]["content"] = delta.text;
  } else {
    choice["text"] = delta.text;
  }
  choice["logprobs"] = logprobs(index, delta);
  choice["finish_reason"] = nullptr;
  return chunk(std::move(choice));
}

std::string ResponseWriter::finish(size_t index, const Choice& done) {
  OrderedJson choice;
  choice["index"] = index;
  if (chat()) {
    choice["delta"] = OrderedJson::object();
  } else {
    choice["text"] = "";
  }
  // Of an empty text they are empty, as in an answer in one piece.
  choice["logprobs"] = has_logprobs_[index] ? OrderedJson() : logprobs(index, {});
  choice["finish_reason"] = finish_text(done.finish());
  if (!done.gaps().empty()) choice["infill"] = done.gaps();
  return chunk(std::move(choice));
}

OrderedJson ResponseWriter::usage_chunk(const std::vector<Choice>& choices) const {
  OrderedJson body = head(chat() ? "chat.completion.chunk" : "text_completion");
  body["choices"] = OrderedJson::array();
  body["usage"] = usage(choices);
  body["diffusion"] = diffusion(choices);
  return body;
}

std::string ResponseWriter::end(const std::vector<Choice>& choices) {
  return (job_.include_usage ? data_event(usage_chunk(choices)) : "") + "data: [DONE]\n\n";
}

std::string ResponseWriter::canvas(const GenerationUpdate& update) {
  OrderedJson body;
  body["index"] = update.index;
  body["forwards"] = update.stats.num_forwards;
  body["first_position"] = job_.canvases[static_cast<size_t>(update.index)].prompt_ids.size();
  for (const char* name : {"token_ids", "tokens", "masked"}) body[name] = OrderedJson::array();
  for (TokenId token : update.canvas) {
    const bool masked = token < 0;
    body["token_ids"].push_back(masked ? OrderedJson() : OrderedJson(token));
    body["tokens"].push_back(masked ? OrderedJson() : OrderedJson(display(token)));
    body["masked"].push_back(masked);
  }
  return named_event("denoise", body);
}

}  // namespace bicached
