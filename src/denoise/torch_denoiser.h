#pragma once

#include "bicached/denoiser.h"
#include "cache/entries.h"
#include "denoise/sampler.h"
#include "model/packed_forward.h"

namespace bicached {

/// The real Denoiser: a model, its KV pool and its prefix entries on one device. Engine thread
/// only.
class TorchDenoiser final : public Denoiser {
 public:
  TorchDenoiser(ModelInfo info, ModelConfig config, ModelWeights weights, int64_t capacity_tokens,
                bool cuda_graphs);

  /// Memory that logits take at a time.
  static int64_t logits_bytes(int64_t num_logits, int64_t max_rows);

  const ModelInfo& info() const override { return info_; }
  void begin_on_thread() override;
  std::optional<SlabId> open_slab(int num_tokens) override {
    return pool_.slabs().open(num_tokens);
  }
  void close_slab(SlabId slab) override;
  int64_t capacity_tokens() const override { return pool_.slabs().capacity_tokens(); }
  int64_t free_tokens() const override { return pool_.slabs().free_tokens(); }
  using Denoiser::run;
  std::vector<RowResult> run(const Forward& forward,
                             const std::function<void()>& meanwhile) override;
  int64_t entry_bytes(const EntrySpec& spec) const override { return entries_.bytes(spec); }
  EntryId create_entry(const EntrySpec& spec) override;
  void fill_entry(EntryId entry, SlabId from) override;
  void load_entry(EntryId entry, SlabId to, int depth) override;
  void destroy_entry(EntryId entry) override { entries_.destroy(entry); }
  void rest() override;
  void check_integrity() const override;

  /// Logits of the rows asked, float32 [rows, V], before sampling; and inner tensors through the
  /// observer. For comparison with reference implementations.
  at::Tensor run_logits(const Forward& forward);
  void set_observer(TensorObserver observer) { forward_.set_observer(std::move(observer)); }
  int num_graphs() const { return forward_.num_graphs(); }
  const KvPool& pool() const { return pool_; }
  const PrefixEntries& entries() const { return entries_; }

 private:
  /// Every call of the engine: without autograd, on the engine's stream, errors translated.
  template <class Work>
  auto in_inference(const char* what, Work&& work) const;

  ModelInfo info_;
  const ModelConfig config_;
  const ModelWeights weights_;
  KvPool pool_;
  PrefixEntries entries_;
  PackedForward forward_;
  TokenRules rules_;
  DistributionHistory history_;
};

}  // namespace bicached
