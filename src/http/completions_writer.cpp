// OpenAI's chat completions and raw completions.
#include <algorithm>
#include <cmath>

#include "base/utf8.h"
#include "base/version.h"
#include "http/answer_writer.h"

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

class CompletionsWriter final : public AnswerWriter {
 public:
  CompletionsWriter(const Job& job, const Tokenizer& tokenizer, const std::string& request_id)
      : job_(job),
        tokenizer_(tokenizer),
        id_((job.dialect == Dialect::kChat ? "chatcmpl-" : "cmpl-") + request_id),
        created_(unix_time()),
        num_characters_(job.canvases.size()),
        has_logprobs_(job.canvases.size()) {}

  /// Each choice as text at once: the log-probabilities of many take a gigabyte as a tree.
  std::string plain(const std::vector<Choice>& choices,
                    const std::vector<ChoiceDelta>& wholes) override {
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

  /// The role in chat, the echoed prompt (or nothing) in raw text.
  std::string begin(size_t index) override {
    const ChoiceDelta before = echo(index);
    OrderedJson scores;
    if (before.tokens.empty()) {
      num_characters_[index] = count_code_points(before.text);
    } else {
      scores = logprobs(index, before);
    }
    return chunk(part(index, {{"role", "assistant"}, {"content", ""}, {"refusal", nullptr}},
                      before.text, scores));
  }

  std::string text(size_t index, const ChoiceDelta& delta) override {
    if (delta.text.empty() && (job_.num_logprobs < 0 || delta.tokens.empty())) return "";
    return chunk(part(index, {{"content", delta.text}}, delta.text, logprobs(index, delta)));
  }

  std::string finish(size_t index, const Choice& done) override {
    // Log-probabilities of an empty text are empty, as in an answer in one piece.
    OrderedJson choice = part(index, OrderedJson::object(), "",
                              has_logprobs_[index] ? OrderedJson() : logprobs(index, {}));
    choice["finish_reason"] = finish_text(done.finish());
    if (!done.gaps().empty()) choice["infill"] = done.gaps();
    return chunk(choice);
  }

  std::string end(const std::vector<Choice>& choices) override {
    std::string usage_event;
    if (job_.include_usage) {
      OrderedJson body = head(chat() ? "chat.completion.chunk" : "text_completion");
      body["choices"] = OrderedJson::array();
      body["usage"] = usage(choices);
      body["diffusion"] = diffusion(choices);
      usage_event = data_event(body);
    }
    return usage_event + "data: [DONE]\n\n";
  }

  std::string canvas(const GenerationUpdate& update) override {
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

 private:
  bool chat() const { return job_.dialect == Dialect::kChat; }
  std::string display(TokenId token) const { return tokenizer_.decode({token}, false); }

  OrderedJson head(const char* object) const {
    OrderedJson body;
    body["id"] = id_;
    body["object"] = object;
    body["created"] = created_;
    body["model"] = job_.model;
    body["system_fingerprint"] = std::string("bicached-") + version();
    return body;
  }

  OrderedJson usage(const std::vector<Choice>& choices) const {
    const int completion = total_completion_tokens(choices);
    OrderedJson out;
    out["prompt_tokens"] = job_.prompt_tokens;
    out["completion_tokens"] = completion;
    out["total_tokens"] = job_.prompt_tokens + completion;
    out["prompt_tokens_details"]["cached_tokens"] = total_cached_tokens(job_, choices);
    return out;
  }

  OrderedJson diffusion(const std::vector<Choice>& choices) const {
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

  /// What precedes choice `index` with `echo`: the prompt, with its tokens where they have scores.
  ChoiceDelta echo(size_t index) const {
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

  OrderedJson chat_logprobs(const ChoiceDelta& delta) const {
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
  OrderedJson text_logprobs(size_t index, const ChoiceDelta& delta) {
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

  OrderedJson logprobs(size_t index, const ChoiceDelta& delta) {
    if (job_.num_logprobs < 0) return nullptr;
    has_logprobs_[index] = 1;
    return chat() ? chat_logprobs(delta) : text_logprobs(index, delta);
  }

  /// What a stream's event tells of a choice: in chat `delta`, else `text`.
  OrderedJson part(size_t index, const OrderedJson& delta, const std::string& text,
                   const OrderedJson& scores) const {
    OrderedJson choice;
    choice["index"] = index;
    if (chat()) {
      choice["delta"] = delta;
    } else {
      choice["text"] = text;
    }
    choice["logprobs"] = scores;
    choice["finish_reason"] = nullptr;
    return choice;
  }

  std::string chunk(const OrderedJson& choice) const {
    OrderedJson body = head(chat() ? "chat.completion.chunk" : "text_completion");
    body["choices"] = OrderedJson::array({choice});
    if (job_.include_usage) body["usage"] = nullptr;
    return data_event(body);
  }

  const Job& job_;
  const Tokenizer& tokenizer_;
  const std::string id_;
  const int64_t created_;
  std::vector<size_t> num_characters_;  // of each choice so far, for text_offset
  std::vector<char> has_logprobs_;      // of each choice, whether a chunk had some
};

}  // namespace

std::unique_ptr<AnswerWriter> make_completions_writer(const Job& job, const Tokenizer& tokenizer,
                                                      const std::string& request_id) {
  return std::make_unique<CompletionsWriter>(job, tokenizer, request_id);
}

}  // namespace bicached
