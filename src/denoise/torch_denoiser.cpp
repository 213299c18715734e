#include "denoise/torch_denoiser.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <utility>

#include "bicached/error.h"
#include "model/torch_errors.h"

namespace bicached {
namespace {

/// Logits at a time: 64 MB in float32, small beside any model whose vocabulary makes it matter.
/// Where they stay as they are, as many as keep a card's multiplying units busy.
constexpr int64_t kLogitsPerChunk = int64_t{16} << 20, kPlainLogitsPerChunk = int64_t{128} << 20;

}  // namespace

template <class Work>
auto TorchDenoiser::in_inference(const char* what, Work&& work) const {
  const c10::InferenceMode mode;
  const CudaStream* stream = forward_.stream();
  try {
    return with_torch_errors(what, [&] {
      c10::OptionalStreamGuard guard;
      if (stream) guard.reset_stream(stream->for_libtorch());
      return work();
    });
  } catch (const Error& error) {
    if (!stream || !stream->is_broken()) throw;
    throw Error(ErrorCode::kDeviceFailed, error.what());
  }
}

int64_t TorchDenoiser::logits_bytes(int64_t num_logits, int64_t max_rows) {
  constexpr int64_t kPlainBytes = 2;
  constexpr int64_t kSampledBytes = 2 + 7 * 4;  // with what the sampler makes of them
  const int64_t all = num_logits * max_rows;
  return std::max(std::min(all, kPlainLogitsPerChunk) * kPlainBytes,
                  std::min(all, kLogitsPerChunk) * kSampledBytes);
}

TorchDenoiser::TorchDenoiser(ModelInfo info, ModelConfig config, ModelWeights weights,
                             int64_t capacity_tokens, bool cuda_graphs)
    : info_(std::move(info)),
      config_(std::move(config)),
      weights_(std::move(weights)),
      pool_(config_, capacity_tokens, weights_.embedding.device(),
            weights_.embedding.scalar_type()),
      entries_(config_, pool_),
      forward_(config_, weights_, pool_, cuda_graphs),
      rules_{config_.vocab_size, config_.mask_token, info_.decoder.filters_confidence} {
  info_.blocks_go_alone = forward_.kernels() != nullptr;
}

/// OpenMP starts a thread's helpers at its first parallel work, and ends the process where it
/// can't.
void TorchDenoiser::begin_on_thread() {
  at::parallel_for(0, at::get_num_threads(), 1, [](int64_t, int64_t) {});
}

void TorchDenoiser::close_slab(SlabId slab) {
  history_.forget(slab);
  pool_.slabs().close(slab);
}

std::vector<RowResult> TorchDenoiser::run(const Forward& forward,
                                          const std::function<void()>& meanwhile) {
  const bool waits = meanwhile && forward_.stream() != nullptr;  // for a card
  if (meanwhile && !waits) meanwhile();
  return in_inference("forward", [&] {
    const at::Tensor hidden = forward_.run(forward, entries_);
    const std::span<const LogitRow> rows(forward.logit_rows);
    const bool plain = forward_.kernels() && std::ranges::all_of(rows, suits_kernels);
    const int64_t logits = plain ? kPlainLogitsPerChunk : kLogitsPerChunk;
    const int64_t chunk_rows = std::max<int64_t>(1, logits / info_.num_logits);
    std::vector<at::Tensor> chunks;  // read only at the end: the device never waits for the host
    history_.drop();
    for (int64_t begin = 0, count = 0; begin < hidden.size(0); begin += count) {
      count = std::min(chunk_rows, hidden.size(0) - begin);
      if (rows[static_cast<size_t>(begin + count - 1)].guidance != 0) ++count;  // with its guide
      chunks.push_back(
          sample_rows(forward_.logits(hidden.narrow(0, begin, count)),
                      rows.subspan(static_cast<size_t>(begin), static_cast<size_t>(count)), rules_,
                      &history_, forward_.kernels()));
    }
    if (waits) meanwhile();
    std::vector<RowResult> results = read_rows(chunks, rows);
    history_.keep();
    return results;
  });
}

at::Tensor TorchDenoiser::run_logits(const Forward& forward) {
  return in_inference(
      "forward", [&] { return forward_.logits(forward_.run(forward, entries_)).to(at::kFloat); });
}

EntryId TorchDenoiser::create_entry(const EntrySpec& spec) {
  return in_inference("prefix entry", [&] { return entries_.create(spec); });
}

void TorchDenoiser::fill_entry(EntryId entry, SlabId from) {
  in_inference("prefix entry", [&] { entries_.fill(entry, from); });
}

void TorchDenoiser::load_entry(EntryId entry, SlabId to, int depth) {
  in_inference("prefix entry", [&] { entries_.load(entry, to, depth); });
}

/// On a card the allocator keeps what is freed, and graphs hold the addresses of the buffers.
void TorchDenoiser::rest() {
  if (!weights_.embedding.is_cpu()) return;
  forward_.drop_scratch();
  pool_.drop_pages_of_nobody();
}

void TorchDenoiser::check_integrity() const {
  pool_.slabs().check_integrity();
  entries_.check_integrity();
}

}  // namespace bicached
