#include "decode/request_rules.h"

#include <algorithm>
#include <set>

namespace bicached {

std::vector<TokenId> never_chosen(const DecodeParams& decode, const ModelInfo& model) {
  if (decode.ignore_eos) return model.end_tokens;
  if (decode.logits_eos_inf && !model.end_tokens.empty()) return {model.end_tokens.front()};
  return {};
}

RequestRules::RequestRules(const GenerateRequest& request, const ModelInfo& model)
    : request_(request), ends_(model.end_tokens), never_(never_chosen(request.decode, model)) {
  const DecodeParams& decode = request.decode;
  if (decode.confidence_eos_eot_inf) {
    // LLaDA's code spares EOS where tokens are drawn.
    const bool draws = request.sampling.temperature > 0 && !ends_.empty();
    discounted_.assign(ends_.begin() + (draws ? 1 : 0), ends_.end());
  }
  ends_.insert(ends_.end(), decode.stop_tokens.begin(), decode.stop_tokens.end());
  if (request.sampling.repetition_penalty == 1) return;
  std::set<TokenId> given(request.prompt_ids.begin(), request.prompt_ids.end());
  given.insert(request.suffix_ids.begin(), request.suffix_ids.end());
  for (const TokenId token : request.given) {
    if (token >= 0) given.insert(token);
  }
  for (const TokenId token : given) counted_.push_back({token, 0, true});
}

bool RequestRules::is_end(TokenId token) const {
  return std::ranges::find(ends_, token) != ends_.end();
}

void RequestRules::count(TokenId token) {
  if (!request_.sampling.has_penalties() || is_end(token)) return;
  const auto found = std::ranges::find(counted_, token, &CountedToken::token);
  if (found != counted_.end()) {
    ++found->num_decided;
  } else {
    counted_.push_back({token, 1, false});
  }
}

void RequestRules::uncount(TokenId token) {
  const auto found = std::ranges::find(counted_, token, &CountedToken::token);
  if (found == counted_.end() || found->num_decided == 0) return;  // an end token
  if (--found->num_decided == 0 && !found->is_given) counted_.erase(found);
}

bool RequestRules::completes_bad_word(const Canvas& canvas, std::span<const Commit> commits,
                                      int position, TokenId token) const {
  /// The token of a position with these decisions; -1: none, or it is not generated.
  const auto token_at = [&](int at) -> TokenId {
    if (at == position) return token;
    if (at < canvas.generation_begin() || at >= canvas.generation_end()) return -1;
    for (const Commit& commit : commits) {
      if (commit.position == at) return commit.token;
    }
    return canvas.is_masked(at) ? -1 : canvas.token(at);
  };
  return std::ranges::any_of(request_.decode.bad_words, [&](const std::vector<TokenId>& word) {
    const int length = static_cast<int>(word.size());
    for (int first = position - length + 1; first <= position; ++first) {
      bool stands = true;
      for (int i = 0; i < length && stands; ++i) {
        stands = token_at(first + i) == word[static_cast<size_t>(i)];
      }
      if (stands) return true;
    }
    return false;
  });
}

void RequestRules::look_at(const Canvas& canvas, std::span<const int> open) {
  never_here_.clear();
  const DecodeParams& decode = request_.decode;
  if (decode.min_tokens == 0 && decode.bad_words.empty()) return;
  for (const int position : open) {
    std::vector<TokenId>& never = never_here_[position];
    if (position - canvas.generation_begin() < decode.min_tokens) never = ends_;
    for (const std::vector<TokenId>& word : decode.bad_words) {
      for (const TokenId token : word) {
        if (std::ranges::find(never, token) != never.end()) continue;
        if (completes_bad_word(canvas, {}, position, token)) never.push_back(token);
      }
    }
  }
}

void RequestRules::apply(int position, LogitRow& row) const {
  row.never = never_;
  row.discounted = discounted_;
  if (const auto here = never_here_.find(position); here != never_here_.end()) {
    row.never_here = here->second;
  }
  row.counted = counted_;
}

std::vector<Commit> RequestRules::without_bad_words(std::vector<Commit> commits,
                                                    const Canvas& canvas) const {
  if (request_.decode.bad_words.empty()) return commits;
  std::vector<Commit> kept;
  for (Commit& commit : commits) {
    if (completes_bad_word(canvas, kept, commit.position, commit.token)) continue;
    kept.push_back(std::move(commit));
  }
  return kept;
}

}  // namespace bicached
