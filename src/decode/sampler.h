#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "bicached/denoiser.h"

namespace bicached {

/// Which ids may be chosen: below the vocabulary's size, not the mask token, and not an end token
/// for rows that ignore ends. All ids take part in the softmax.
struct TokenRules {
  int vocab_size = 0;
  TokenId mask_token = -1;  // -1: none
  std::vector<TokenId> end_tokens;
};

/// Chooses a token for each row and computes the four numbers that decoding needs, on the device;
/// one small transfer brings them back.
///
/// logits: float32 [rows.size(), V]; overwritten where a row has a logit_bias. Greedy at
/// temperature 0 (ties: lowest id); else a draw by inverse CDF with the row's `uniform` from
/// softmax(logits / temperature), cut by top_p, then by top_k: a token goes when all more probable
/// ones hold more than top_p together, or when its logit is below the k-th greatest.
std::vector<RowResult> sample_rows(at::Tensor logits, std::span<const LogitRow> rows,
                                   const TokenRules& rules);

}  // namespace bicached
