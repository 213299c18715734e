// The packed forward through the Denoiser's own interface, on a small random model.
#include <ATen/core/Tensor.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "bicached/error.h"
#include "decode/noise.h"
#include "denoise/torch_denoiser.h"
#include "model/float8.h"
#include "model/load_model.h"
#include "model/tiny_model.h"

namespace bicached {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using namespace bicached::testing;

// GEMMs of another height add in another order: a few units in the last place of logits near 10.
constexpr double kTolerance = 1e-4;

/// On every device of this machine; what is not here shows as skipped.
class PackedForwardTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "cuda" && !has_cuda()) GTEST_SKIP() << "no CUDA device here";
    write_tiny_model(folder_);
    model_ = load_model(folder_.path(), GetParam());
  }
  void TearDown() override {
    if (model_) model_->check_integrity();
  }

  std::vector<TokenId> tokens(int count, int seed) {
    std::vector<TokenId> ids;
    for (int i = 0; i < count; ++i) {
      ids.push_back(i % 3 == 2 ? model_->info().mask_token : (i * 31 + seed * 17 + 5) % 55);
    }
    return ids;
  }
  static void want(Forward& forward, int group, int begin, int end) {
    for (int row = begin; row < end; ++row) {
      LogitRow& wanted = forward.logit_rows.emplace_back();
      wanted.group = group;
      wanted.row = row;
    }
  }
  at::Tensor full_logits(const std::vector<TokenId>& ids) {
    const SlabId slab = *model_->open_slab(static_cast<int>(ids.size()));
    Forward forward{{rows(slab, ids, 0, static_cast<int>(ids.size()))}, {}};
    want(forward, 0, 0, static_cast<int>(ids.size()));
    at::Tensor logits = model_->run_logits(forward);
    model_->close_slab(slab);
    return logits;
  }
  static bool close(const at::Tensor& a, const at::Tensor& b, double tolerance = kTolerance) {
    return at::allclose(a, b, 0, tolerance);
  }

  const c10::InferenceMode mode_;
  TempFolder folder_;
  std::unique_ptr<TorchDenoiser> model_;
};

TEST_P(PackedForwardTest, WantingFewRowsChangesNothing) {
  const auto ids = tokens(20, 1);
  const at::Tensor all = full_logits(ids);
  const SlabId slab = *model_->open_slab(20);
  Forward forward{{rows(slab, ids, 0, 20)}, {}};
  for (const int row : {17, 3, 17, 9}) {  // any order, also twice
    forward.logit_rows.emplace_back().row = row;
  }
  const at::Tensor some = model_->run_logits(forward);
  model_->close_slab(slab);
  ASSERT_EQ(some.size(0), 4);
  EXPECT_TRUE(close(some[0], all[17]));
  EXPECT_TRUE(close(some[1], all[3]));
  EXPECT_TRUE(close(some[2], all[17]));
  EXPECT_TRUE(close(some[3], all[9]));
}

TEST_P(PackedForwardTest, AnIndexListIsTheSameRows) {
  const auto ids = tokens(12, 2);
  const at::Tensor all = full_logits(ids);
  const SlabId slab = *model_->open_slab(12);
  RowGroup even = rows(slab, ids, 0, 0), odd = even;
  for (int i = 0; i < 12; ++i) {
    RowGroup& group = i % 2 == 0 ? even : odd;
    group.rows.push_back(i);
    group.tokens.push_back(ids[static_cast<size_t>(i)]);
  }
  Forward forward{{even, odd}, {}};
  for (int i = 0; i < 12; ++i) {
    LogitRow& wanted = forward.logit_rows.emplace_back();
    wanted.group = i % 2;
    wanted.row = i;
  }
  EXPECT_TRUE(close(model_->run_logits(forward), all));
  model_->close_slab(slab);
}

TEST_P(PackedForwardTest, KeysEndWhereTheGroupSays) {
  const auto ids = tokens(16, 3);
  const std::vector<TokenId> first(ids.begin(), ids.begin() + 7);
  const at::Tensor alone = full_logits(first);
  const SlabId slab = *model_->open_slab(16);
  Forward forward{{rows(slab, ids, 0, 16), rows(slab, ids, 0, 7)}, {}};
  forward.groups[0] = rows(slab, ids, 7, 16);
  forward.groups[1].key_end = 7;
  want(forward, 1, 0, 7);
  EXPECT_TRUE(close(model_->run_logits(forward), alone));
  model_->close_slab(slab);
}

/// Slabs, entry and forward of one canvas in one of several phases.
struct Phase {
  Forward forward;
  SlabId slab = kNoId;
  EntryId entry = kNoId;
};

TEST_P(PackedForwardTest, EightCanvasesTogetherAreEachAlone) {
  const int num_layers = model_->info().num_layers;
  const auto make = [&](int i) {
    Phase phase;
    const int length = 9 + 7 * i, prefix = 4 + i, depth = i % num_layers;
    const auto ids = tokens(length, i);
    phase.slab = *model_->open_slab(length);
    if (depth == 0) {
      phase.forward.groups = {rows(phase.slab, ids, 0, length)};
    } else {
      EntrySpec spec{prefix, num_layers, {}};
      for (int b = 1; b < num_layers; ++b) spec.boundaries.push_back(b);
      phase.entry = model_->create_entry(spec);
      const SlabId own = *model_->open_slab(prefix);
      const std::vector<TokenId> prefix_ids(ids.begin(), ids.begin() + prefix);
      RowGroup group = rows(own, prefix_ids, 0, prefix);
      group.capture_to = phase.entry;
      model_->run({{group}, {}});
      model_->fill_entry(phase.entry, own);
      model_->close_slab(own);
      model_->load_entry(phase.entry, phase.slab, depth);
      RowGroup late = rows(phase.slab, ids, 0, prefix);
      late.tokens.clear();
      late.enter_layer = depth;
      late.enter_from = phase.entry;
      phase.forward.groups = {rows(phase.slab, ids, prefix, length), late};
    }
    want(phase.forward, 0, depth == 0 ? 1 : prefix, length);
    return phase;
  };
  std::vector<Phase> phases;
  for (int i = 0; i < 8; ++i) phases.push_back(make(i));
  std::vector<at::Tensor> alone;
  Forward together;
  for (Phase& phase : phases) {
    alone.push_back(model_->run_logits(phase.forward));
    for (LogitRow row : phase.forward.logit_rows) {
      row.group += static_cast<int>(together.groups.size());
      together.logit_rows.push_back(row);
    }
    together.groups.insert(together.groups.end(), phase.forward.groups.begin(),
                           phase.forward.groups.end());
  }
  const at::Tensor logits = model_->run_logits(together);
  int64_t at = 0;
  for (size_t i = 0; i < phases.size(); ++i) {
    EXPECT_TRUE(close(logits.narrow(0, at, alone[i].size(0)), alone[i])) << "canvas " << i;
    at += alone[i].size(0);
    model_->close_slab(phases[i].slab);
    if (phases[i].entry != kNoId) model_->destroy_entry(phases[i].entry);
  }
  EXPECT_EQ(model_->free_tokens(), model_->capacity_tokens());
}

TEST_P(PackedForwardTest, RowsThatLeaveKeepTheirOldKeysAbove) {
  // The second forward runs rows [0, 6) with other tokens in layers 0 and 1 only, so from layer 2
  // on the others still see the K and V of the first forward.
  const auto ids = tokens(14, 4);
  auto other = ids;
  other[2] = 1;
  const SlabId slab = *model_->open_slab(14);
  Forward first{{rows(slab, ids, 0, 14)}, {}};
  model_->run(first);
  RowGroup leaving = rows(slab, other, 0, 6);
  leaving.leave_layer = 2;
  Forward second{{leaving, rows(slab, other, 6, 14)}, {}};
  want(second, 1, 6, 14);
  const at::Tensor mixed = model_->run_logits(second);
  // The same by hand: layers 0 and 1 from a full forward of `other`, the rest from `ids`.
  const auto layer_of = [&](const KvPool& pool, int layer) {
    return pool.keys(layer).narrow(0, pool.slabs().range(slab).begin, 6);
  };
  std::vector<at::Tensor> kept;
  for (int layer = 2; layer < 5; ++layer) kept.push_back(layer_of(model_->pool(), layer).clone());
  model_->run({{rows(slab, ids, 0, 14)}, {}});
  for (int layer = 2; layer < 5; ++layer) {
    EXPECT_TRUE(close(kept[static_cast<size_t>(layer - 2)], layer_of(model_->pool(), layer)));
  }
  EXPECT_FALSE(close(mixed, full_logits(ids).narrow(0, 6, 8)));
  EXPECT_FALSE(close(mixed, full_logits(other).narrow(0, 6, 8)));
  model_->close_slab(slab);
}

TEST_P(PackedForwardTest, RefusesGroupsThatBreakTheRules) {
  const auto ids = tokens(10, 5);
  const SlabId slab = *model_->open_slab(10);
  const auto refusal = [&](auto&& change) {
    Forward forward{{rows(slab, ids, 0, 10)}, {}};
    change(forward);
    try {
      model_->run(forward);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kInternal);
      return std::string(e.what());
    }
    return std::string();
  };
  using F = Forward;
  EXPECT_EQ(refusal([](F&) {}), "");
  EXPECT_THAT(refusal([](F& f) { f.groups[0].end = 11; }), HasSubstr("outside"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].begin = -1; }), HasSubstr("outside"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].key_end = 11; }), HasSubstr("outside"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].key_end = 0; }), HasSubstr("outside"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].rows = {1, 1}; }), HasSubstr("ascend"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].end = 0; }), HasSubstr("no rows"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].tokens.pop_back(); }), HasSubstr("token"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].tokens[0] = 64; }), HasSubstr("token id"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].tokens[0] = -1; }), HasSubstr("token id"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].enter_layer = 5; }), HasSubstr("layer"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].enter_layer = 1; }), HasSubstr("entry"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].leave_layer = 6; }), HasSubstr("layer"));
  EXPECT_THAT(refusal([](F& f) { f.groups[0].slab = 77; }), HasSubstr("slab"));
  EXPECT_THAT(refusal([](F& f) { want(f, 0, 10, 11); }), HasSubstr("no row"));
  EXPECT_THAT(refusal([](F& f) { want(f, 1, 0, 1); }), HasSubstr("last layer"));
  EXPECT_THAT(refusal([](F& f) { f.groups.clear(); }), HasSubstr("without"));
  model_->close_slab(slab);
}

TEST_P(PackedForwardTest, Bfloat16IsNearFloat32) {
  const auto narrow = load_model(folder_.path(), GetParam(), "bfloat16");
  const auto ids = tokens(24, 6);
  const at::Tensor wide = full_logits(ids);
  std::swap(const_cast<std::unique_ptr<TorchDenoiser>&>(narrow), model_);
  const at::Tensor rounded = full_logits(ids);
  // About eight roundings of 2^-9 a layer that add up like a random walk, twice that allowed.
  const double error = (rounded.sub(wide).norm().div(wide.norm())).item<double>();
  EXPECT_LT(error, 2 * 0x1p-9 * std::sqrt(8.0 * 6));
  EXPECT_GT(error, 1e-5) << "it did run in bfloat16";
}

TEST_P(PackedForwardTest, ThePoolSaysWhenItIsFull) {
  const int64_t capacity = model_->capacity_tokens();
  ASSERT_EQ(capacity, (1 << 20) / model_->info().kv_bytes_per_token);
  std::vector<SlabId> open;
  while (const auto slab = model_->open_slab(100)) open.push_back(*slab);
  EXPECT_EQ(static_cast<int64_t>(open.size()), capacity / 100);
  EXPECT_EQ(model_->free_tokens(), capacity % 100);
  model_->check_integrity();
  for (const SlabId slab : open) model_->close_slab(slab);
  EXPECT_EQ(model_->free_tokens(), capacity);
}

TEST_P(PackedForwardTest, RestingChangesNoOpenSlab) {
  const auto ids = tokens(20, 8);
  const SlabId slab = *model_->open_slab(20);
  Forward all{{rows(slab, ids, 0, 20)}, {}}, some{{rows(slab, ids, 12, 20)}, {}};
  want(some, 0, 12, 20);
  model_->run_logits(all);
  const at::Tensor before = model_->run_logits(some);
  model_->rest();
  EXPECT_TRUE(close(model_->run_logits(some), before, 0)) << "rows 0 to 11 are in the pool";
  model_->close_slab(slab);
}

/// Bytes of a tensor's whole pages that are in memory.
int64_t resident_bytes(const at::Tensor& tensor) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t end = (begin + tensor.nbytes()) / page * page;
  std::vector<unsigned char> pages((end - first) / page);
  EXPECT_EQ(::mincore(reinterpret_cast<void*>(first), end - first, pages.data()), 0);
  return static_cast<int64_t>(page) *
         std::ranges::count_if(pages, [](unsigned char flags) { return flags & 1; });
}

TEST_P(PackedForwardTest, RestingGivesThePoolsPagesBack) {
  if (GetParam() != "cpu") GTEST_SKIP() << "a card's memory has no pages to give back";
  const auto ids = tokens(100, 9);
  const at::Tensor& keys = model_->pool().keys(0);
  const at::Tensor logits = full_logits(ids);
  EXPECT_GT(resident_bytes(keys), 0);
  const SlabId slab = *model_->open_slab(1);
  model_->rest();
  EXPECT_GT(resident_bytes(keys), 0) << "somebody's";
  model_->close_slab(slab);
  model_->rest();
  EXPECT_EQ(resident_bytes(keys), 0);
  EXPECT_TRUE(close(full_logits(ids), logits));
}

TEST_P(PackedForwardTest, ABudgetUnderOneTokenIsRefused) {
  try {
    load_model(folder_.path(), GetParam(), "float32", 8);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidSettings);
    EXPECT_EQ(e.param(), "kv_cache_bytes");
  }
}

TEST_P(PackedForwardTest, InspectionAgreesWithTheLoadedModel) {
  ModelSettings settings;
  settings.path = folder_.path();
  settings.dtype = "float32";
  settings.device = "cpu";
  const ModelInfo seen = inspect_model(settings), loaded = model_->info();
  EXPECT_EQ(seen.fingerprint, loaded.fingerprint);
  EXPECT_EQ(seen.num_parameters, loaded.num_parameters);
  EXPECT_EQ(seen.family, "llada");
  EXPECT_EQ(seen.num_logits, 64);
  EXPECT_EQ(seen.device, "cpu");
}

TEST(WeightNames, AreStrict) {
  const TempFolder folder;
  const auto refusal = [&](auto&& change) {
    auto shapes = tiny_shapes(tiny_config());
    change(shapes);
    folder.write("config.json", tiny_config().dump());
    folder.write("model.safetensors", random_tensors(shapes));
    try {
      load_model(folder.path(), "cpu");
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kInvalidModel);
      return std::string(e.what());
    }
    return std::string();
  };
  const std::string query = "model.transformer.blocks.3.q_proj.weight";
  using Shapes = std::map<std::string, std::vector<int64_t>>;
  EXPECT_EQ(refusal([](Shapes&) {}), "");
  EXPECT_THAT(refusal([&](Shapes& s) { s.erase(query); }), HasSubstr(query));
  EXPECT_THAT(refusal([&](Shapes& s) { s[query] = {32, 31}; }), HasSubstr("[32, 32]"));
  EXPECT_THAT(refusal([&](Shapes& s) { s["lora.weight"] = {1}; }), HasSubstr("lora.weight"));
}

struct Shaped {
  json config;
  std::map<std::string, std::vector<int64_t>> shapes;
  std::string matrix;  // one of them
};

class Float8Checkpoint : public ::testing::TestWithParam<Shaped> {};

/// A checkpoint as compressed-tensors writes it: matrices of layers in float8, with a scale a row
/// or one for all. It means the products.
TEST_P(Float8Checkpoint, IsReadAsItsCodesTimesItsScales) {
  const c10::InferenceMode mode;
  const TempFolder widened, stored;
  json header_wide, header_stored;
  std::string data_wide, data_stored;
  const auto put = [](json& header, std::string& data, const std::string& name,
                      const at::Tensor& tensor, const char* dtype) {
    const size_t begin = data.size();
    data.append(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
    header[name] = {
        {"dtype", dtype}, {"shape", tensor.sizes().vec()}, {"data_offsets", {begin, data.size()}}};
  };
  int seed = 0;
  for (const auto& [name, shape] : GetParam().shapes) {
    at::Tensor value = at::empty(shape, at::kFloat);
    float* x = value.mutable_data_ptr<float>();
    for (int64_t i = 0; i < value.numel(); ++i) {
      x[i] = static_cast<float>(
          counter_uniform(5, static_cast<uint64_t>(seed), static_cast<uint64_t>(i)) - 0.5);
    }
    ++seed;
    if (name.find("_proj") == std::string::npos) {
      put(header_wide, data_wide, name, value, "F32");
      put(header_stored, data_stored, name, value, "F32");
      continue;
    }
    const bool by_row = seed % 2 == 0;
    const at::Tensor scale =
        by_row ? value.abs().amax(1, true).div(300) : value.abs().amax().div(300).view({1});
    const at::Tensor codes = value.div(scale).to(at::kFloat8_e4m3fn);
    put(header_wide, data_wide, name, codes.to(at::kFloat).mul(scale), "F32");
    put(header_stored, data_stored, name, codes, "F8_E4M3");
    put(header_stored, data_stored, name + "_scale", scale, "F32");
  }
  for (const auto* folder : {&widened, &stored}) {
    folder->write("config.json", GetParam().config.dump());
  }
  widened.write("model.safetensors", safetensors_bytes(header_wide.dump(), data_wide));
  stored.write("model.safetensors", safetensors_bytes(header_stored.dump(), data_stored));
  std::vector<at::Tensor> logits;
  for (const auto* folder : {&widened, &stored}) {
    const auto model = load_model(folder->path(), "cpu");
    const std::vector<TokenId> ids{3, 1, 4, 1, 5, 57, 57};
    Forward forward{{rows(*model->open_slab(7), ids, 0, 7)}, {}};
    forward.logit_rows.emplace_back().row = 6;
    logits.push_back(model->run_logits(forward));
  }
  EXPECT_TRUE(at::allclose(logits[0], logits[1], 0, 0));

  // Where a card multiplies float8 the codes stay what they are.
  const ParsedModel parsed = parse_model_folder(stored.path());
  const auto load = [&](const TempFolder& folder, bool fp8) {
    return load_weights(Checkpoint::open(folder.path()), parsed, at::kCPU, at::kFloat, fp8, {});
  };
  const ModelWeights plain = load(widened, false), kept = load(stored, true);
  const auto expect_kept = [](const Linear& codes, const Linear& values) {
    ASSERT_TRUE(codes.is_quantised());
    EXPECT_TRUE(testing::widened(codes).equal(values.weight));
  };
  for (size_t i = 0; i < plain.layers.size(); ++i) {
    const LayerWeights &want = plain.layers[i], &got = kept.layers[i];
    if (want.experts) {
      expect_kept(got.experts->gate_up, want.experts->gate_up);
      expect_kept(got.experts->down, want.experts->down);
    } else {
      expect_kept(got.mlp->gate_up, want.mlp->gate_up);
    }
  }

  const std::string lost = GetParam().matrix + "_scale";
  header_stored[lost + "s"] = header_stored[lost];
  header_stored.erase(lost);
  stored.write("model.safetensors", safetensors_bytes(header_stored.dump(), data_stored));
  try {
    load_model(stored.path(), "cpu");
    FAIL() << "loaded without a scale";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(lost));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, Float8Checkpoint,
    ::testing::Values(Shaped{tiny_config(), tiny_shapes(tiny_config()),
                             "model.transformer.blocks.0.k_proj.weight"},
                      Shaped{tiny_llada2_config(2), tiny_llada2_shapes(2),
                             "model.layers.1.mlp.shared_experts.down_proj.weight"}),
    [](const auto& made) { return made.index == 0 ? "Dense" : "Experts"; });

INSTANTIATE_TEST_SUITE_P(Devices, PackedForwardTest, ::testing::Values("cpu", "cuda"),
                         [](const auto& device) { return device.param; });

}  // namespace
}  // namespace bicached
