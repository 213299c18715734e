#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "bicached/denoiser.h"
#include "denoise/distribution_history.h"
#include "model/cuda/model_kernels.h"

namespace bicached {

/// Which ids may be chosen: below the vocabulary's size and not the mask token. These two take part
/// in the softmax all the same.
struct TokenRules {
  int vocab_size = 0;
  TokenId mask_token = -1;          // -1: none
  bool filters_confidence = false;  // see ReferenceDecoder
};

/// Whether `ModelKernels` know all that a row asks for: its logits as they are, and no
/// log-probabilities.
bool suits_kernels(const LogitRow& row);

/// Chooses a token for each row and computes the numbers that decoding needs, on the device.
/// Returns float64 [n, 6 + 2 top], or the statistics of `ModelKernels` where no row asks for more,
/// still on the device: `read_rows` fetches all chunks of a forward.
///
/// The distribution is softmax(logits), after guidance and `apply_logit_rules`. Greedy at
/// temperature 0 (ties: lowest id); else logits / temperature, then min_p (a token goes when it has
/// less than this share of the greatest probability), then top_p (one goes when all more probable
/// ones hold more than top_p together), then top_k (those below the k-th greatest go), then a draw
/// by the inverse distribution function at the row's `uniform`. Where no token may be chosen it is
/// kNoToken. logits: [n, V], in float32 overwritten, else computed with in float32; rows[i] belongs
/// to logits[i], and a row with guidance is not the last. `history` may be null where no row asks
/// for it; `kernels`: of the device, or null.
at::Tensor sample_rows(at::Tensor logits, std::span<const LogitRow> rows, const TokenRules& rules,
                       DistributionHistory* history = nullptr,
                       const ModelKernels* kernels = nullptr);

/// Results of `sample_rows` on the host, chunk after chunk.
std::vector<RowResult> read_rows(const std::vector<at::Tensor>& chunks,
                                 std::span<const LogitRow> rows);

}  // namespace bicached
