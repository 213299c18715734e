#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <span>
#include <vector>

#include "bicached/denoiser.h"
#include "denoise/sampler.h"

namespace bicached {

/// A host vector on the device of `like`.
template <class T>
at::Tensor upload(const std::vector<T>& values, const at::Tensor& like) {
  constexpr at::ScalarType kType = c10::CppTypeToScalarType<T>::value;
  return at::from_blob(const_cast<T*>(values.data()), {static_cast<int64_t>(values.size())},
                       at::dtype(kType))
      .to(like.device(), kType, /*non_blocking=*/false, /*copy=*/true);
}

/// Whether a request changes the logits of a row.
bool has_logit_rules(const LogitRow& row);

/// Changes logits [n, V] in float32 as their rows' requests say; a row's depend on it alone. In
/// this order, which is vLLM's: those of tokens that are not allowed or never chosen become
/// -infinity (the mask token's is left: it takes part in the softmax, as in the references),
/// `logit_bias` is added, then repetition, frequency and presence penalties.
void apply_logit_rules(at::Tensor& logits, std::span<const LogitRow> rows, const TokenRules& rules);

}  // namespace bicached
