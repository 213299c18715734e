// Prefix entries, among them the replay test: an entry taken from the same canvas state must give
// the full forward's logits at every depth. What remains is the method's own approximation.
#include <ATen/core/Tensor.h>
#include <ATen/ops/allclose.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "bicached/error.h"
#include "decode/planner.h"
#include "decode/prefix_entry.h"
#include "denoise/torch_denoiser.h"
#include "model/load_model.h"
#include "model/tiny_model.h"

namespace bicached {
namespace {

using namespace bicached::testing;

EntrySpec whole_entry(const ModelInfo& model, int prefix_len) {
  EntrySpec spec{prefix_len, model.num_layers, {}};
  for (int b = 1; b < model.num_layers; ++b) spec.boundaries.push_back(b);
  return spec;
}

/// Captures an entry from a full forward of a canvas, then runs the canvas again from it at every
/// depth in a fresh slab.
void check_replay(TorchDenoiser& model, const std::vector<TokenId>& ids, int prefix_len,
                  double tolerance) {
  const c10::InferenceMode mode;
  const int length = static_cast<int>(ids.size());
  const auto want = [&](Forward& forward) {
    for (int row = prefix_len; row < length; ++row) forward.logit_rows.emplace_back().row = row;
  };
  const SlabId slab = *model.open_slab(length);
  const EntryId entry = model.create_entry(whole_entry(model.info(), prefix_len));
  Forward full{{rows(slab, ids, 0, length)}, {}};
  full.groups[0].capture_to = entry;
  want(full);
  const at::Tensor expected = model.run_logits(full);
  model.fill_entry(entry, slab);
  model.close_slab(slab);
  for (int depth = 1; depth <= model.info().num_layers; ++depth) {
    const SlabId again = *model.open_slab(length);
    model.load_entry(entry, again, depth);
    Forward forward{{rows(again, ids, prefix_len, length)}, {}};
    if (depth < model.info().num_layers) {
      RowGroup late = rows(again, ids, 0, prefix_len);
      late.tokens.clear();
      late.enter_layer = depth;
      late.enter_from = entry;
      forward.groups.push_back(late);
    }
    want(forward);
    const double error = model.run_logits(forward).sub(expected).abs().max().item<double>();
    EXPECT_LE(error, tolerance) << "depth " << depth;
    model.close_slab(again);
  }
  model.destroy_entry(entry);
  model.check_integrity();
  EXPECT_EQ(model.free_tokens(), model.capacity_tokens());
}

std::vector<TokenId> some_tokens(int count, const ModelInfo& model) {
  std::vector<TokenId> ids;
  for (int i = 0; i < count; ++i) {
    ids.push_back(i > count / 2 && i % 2 == 0 ? model.mask_token : (i * 37 + 11) % 50);
  }
  return ids;
}

/// Runs a canvas whole, which leaves its hidden states, and then as an adaptive refresh that enters
/// outside the block from them, at every depth: no token changed, so the logits are the same.
void check_refresh(TorchDenoiser& model, const std::vector<TokenId>& ids, double tolerance) {
  const c10::InferenceMode mode;
  PlanState plan;
  plan.length = static_cast<int>(ids.size());
  plan.num_layers = model.info().num_layers;
  plan.prompt_len = plan.length / 2;
  plan.reuse.prefix_len = plan.length / 4;
  plan.block_begin = plan.prompt_len + 2;
  plan.block_end = plan.length - 2;
  plan.at_block_start = plan.at_first_forward = false;
  plan.refresh_due = true;
  plan.reuse.intra_cache = IntraCache::kAdaptive;
  const SlabId slab = *model.open_slab(plan.length);
  const EntryId own = model.create_entry(whole_entry(model.info(), plan.length));
  const auto logits = [&](Forward& forward, int block_group) {
    for (int row = plan.block_begin; row < plan.block_end; ++row) {
      LogitRow& wanted = forward.logit_rows.emplace_back();
      wanted.group = block_group;
      wanted.row = row;
    }
    return model.run_logits(forward);
  };
  Forward full{{rows(slab, ids, 0, plan.length)}, {}};
  full.groups[0].capture_to = own;
  const at::Tensor expected = logits(full, 0);
  for (int depth = 1; depth <= plan.num_layers; ++depth) {
    plan.reuse.refresh_depth = depth;
    Forward forward;
    int block_group = 0;
    for (const RowGroup& planned : plan_rows(plan)) {
      RowGroup group = rows(slab, ids, planned.begin, planned.end);
      group.key_end = planned.key_end;
      if (planned.enter_layer == 0) block_group = static_cast<int>(forward.groups.size());
      if (planned.enter_layer > 0) group.tokens.clear();
      group.enter_layer = planned.enter_layer;
      group.enter_from = own;
      forward.groups.push_back(group);
    }
    EXPECT_EQ(forward.groups.size(), depth < plan.num_layers ? 3u : 1u);
    const double error = logits(forward, block_group).sub(expected).abs().max().item<double>();
    EXPECT_LE(error, tolerance) << "depth " << depth;
  }
  model.destroy_entry(own);
  model.close_slab(slab);
  model.check_integrity();
}

class Replay : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "cuda" && !has_cuda()) GTEST_SKIP() << "no CUDA device here";
  }
};

TEST_P(Replay, GivesTheFullForwardsLogitsAtEveryDepth) {
  const TempFolder folder;
  write_tiny_model(folder);
  const auto model = load_model(folder.path(), GetParam(), "float32", 16 << 20);
  for (const int prefix_len : {1, 13, 31}) {
    check_replay(*model, some_tokens(32, model->info()), prefix_len, 1e-4);
  }
  check_refresh(*model, some_tokens(32, model->info()), 1e-4);
}

TEST_P(Replay, AnEntryNeedsNoLayersAboveItsDepth) {
  const TempFolder folder;
  write_tiny_model(folder);
  const auto model = load_model(folder.path(), GetParam(), "float32", 16 << 20);
  const auto ids = some_tokens(20, model->info());
  const auto logits_from = [&](int max_depth, int depth) {
    const c10::InferenceMode mode;
    EntrySpec spec{12, max_depth, {}};
    if (depth < model->info().num_layers) spec.boundaries = {depth};
    const EntryId entry = model->create_entry(spec);
    const SlabId own = *model->open_slab(12), slab = *model->open_slab(20);
    Forward making;
    append_prefix_entry(making, std::span(ids).first(12), own, entry, max_depth, 0);
    model->run(making);
    model->fill_entry(entry, own);
    model->load_entry(entry, slab, depth);
    Forward forward{{rows(slab, ids, 12, 20)}, {}};
    if (depth < model->info().num_layers) {
      RowGroup late = rows(slab, ids, 0, 12);
      late.tokens.clear();
      late.enter_layer = depth;
      late.enter_from = entry;
      forward.groups.push_back(late);
    }
    for (int row = 12; row < 20; ++row) forward.logit_rows.emplace_back().row = row;
    const at::Tensor logits = model->run_logits(forward);
    model->close_slab(own);
    model->close_slab(slab);
    model->destroy_entry(entry);
    return logits;
  };
  for (int depth = 1; depth <= model->info().num_layers; ++depth) {
    const at::Tensor whole = logits_from(model->info().num_layers, depth);
    EXPECT_LE(logits_from(depth, depth).sub(whole).abs().max().item<double>(), 1e-4) << depth;
  }
}

TEST_P(Replay, HoldsForTheDemoModel) {
  const auto model =
      load_model(BICACHED_SOURCE_DIR "/models/demo", GetParam(), "float32", 16 << 20);
  // Logits near 30, sums of 704 in another order.
  check_replay(*model, some_tokens(96, model->info()), 64, 2e-3);
  check_refresh(*model, some_tokens(96, model->info()), 2e-3);
}

INSTANTIATE_TEST_SUITE_P(Devices, Replay, ::testing::Values("cpu", "cuda"),
                         [](const auto& device) { return device.param; });

class EntriesTest : public ::testing::Test {
 protected:
  EntriesTest() {
    write_tiny_model(folder_);
    model_ = load_model(folder_.path(), "cpu", "float32", 16 << 20);
  }
  TempFolder folder_;
  std::unique_ptr<TorchDenoiser> model_;
};

TEST_F(EntriesTest, BytesAreExact) {
  // 5 layers, 2 KV heads of 8, width 32, float32.
  EXPECT_EQ(model_->entry_bytes({10, 5, {1, 2, 3, 4}}), 10 * 4 * (2 * 5 * 16 + 4 * 32));
  EXPECT_EQ(model_->entry_bytes({7, 2, {2}}), 7 * 4 * (2 * 2 * 16 + 32));
  const EntryId a = model_->create_entry({10, 5, {1, 2, 3, 4}});
  const EntryId b = model_->create_entry({7, 2, {2}});
  EXPECT_EQ(model_->entries().bytes_held(),
            model_->entry_bytes({10, 5, {1, 2, 3, 4}}) + model_->entry_bytes({7, 2, {2}}));
  model_->check_integrity();
  model_->destroy_entry(a);
  model_->destroy_entry(b);
  EXPECT_EQ(model_->entries().bytes_held(), 0);
  model_->check_integrity();
}

TEST_F(EntriesTest, RefusesWhatTheModelCannotHave) {
  for (const EntrySpec& spec :
       {EntrySpec{0, 1, {}}, EntrySpec{4, 6, {}}, EntrySpec{4, -1, {}}, EntrySpec{4, 2, {0}},
        EntrySpec{4, 2, {5}}, EntrySpec{4, 2, {2, 1}}, EntrySpec{4, 2, {1, 1}}}) {
    EXPECT_THROW(model_->create_entry(spec), Error);
  }
}

TEST_F(EntriesTest, RefusesDepthsAndSlabsThatDoNotFit) {
  const EntryId entry = model_->create_entry({8, 3, {2}});
  const SlabId slab = *model_->open_slab(8), small = *model_->open_slab(7);
  model_->load_entry(entry, slab, 3);
  EXPECT_THROW(model_->load_entry(entry, slab, 4), Error);
  EXPECT_THROW(model_->load_entry(entry, slab, -1), Error);
  EXPECT_THROW(model_->load_entry(entry, small, 1), Error);
  EXPECT_THROW(model_->fill_entry(entry, small), Error);
  EXPECT_THROW(model_->fill_entry(entry + 1, slab), Error);
  EXPECT_THROW(model_->destroy_entry(entry + 1), Error);
}

TEST_F(EntriesTest, RefusesToEnterWhereNoStateIsKept) {
  const auto ids = some_tokens(12, model_->info());
  const EntryId entry = model_->create_entry({8, 3, {2}});
  const SlabId slab = *model_->open_slab(12);
  const auto enter = [&](int layer, int end) {
    RowGroup late = rows(slab, ids, 0, end);
    late.tokens.clear();
    late.enter_layer = layer;
    late.enter_from = entry;
    model_->run({{rows(slab, ids, 8, 12), late}, {}});
  };
  enter(2, 8);
  EXPECT_THROW(enter(1, 8), Error) << "no such boundary";
  EXPECT_THROW(enter(2, 9), Error) << "longer than the prefix";
}

}  // namespace
}  // namespace bicached
