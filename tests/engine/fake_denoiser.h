#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "bicached/denoiser.h"
#include "bicached/error.h"

namespace bicached {

/// A Denoiser without torch: the token of a position is a hash of what stands on the canvas, so
/// batching, order and timing must not change any answer. Tokens 0..255 are bytes; answers are
/// small letters, now and then an end.
///
/// A test keeps `control` to steer it from another thread.
class FakeDenoiser final : public Denoiser {
 public:
  static constexpr TokenId kEnd = 256, kMask = 257;
  static constexpr int kMaxLength = 2048;

  struct Control {
    std::atomic<int> forward_ms{0};  // a forward takes at least this long
    std::atomic<int> num_forwards{0};
    std::atomic<bool> is_unsure{false};  // no token has a probability over one half
    std::atomic<int> num_open_slabs{0};
    std::atomic<int> end_one_in{24};    // how often a token is the end; 0: never
    std::atomic<int> fail_forwards{0};  // so many next forwards throw
    std::atomic<bool> device_failed{false};
    // So many next entries can't be made, filled, loaded.
    std::atomic<int> fail_creates{0}, fail_fills{0}, fail_loads{0};
    std::atomic<int> max_rows_seen{0};
    std::atomic<int> max_canvases_seen{0};
    /// Not 0: blocks, groups of so many rows at most, go alone; forwards where others go with them.
    std::atomic<int> block_rows{0}, num_mixed{0};
    int attention_block = 0;          // of the model; not to be changed later
    std::atomic<TokenId> poison{-1};  // a forward over a canvas with this token throws
    /// A canvas whose prefix was taken from an entry deeper than this decides other tokens.
    std::atomic<int> safe_depth{4};
    /// One taken from any entry does so in forwards of so many rows of it, or fewer.
    std::atomic<int> clash_rows{0};
    std::atomic<int> boundary_bytes{0};  // a token's hidden state
    std::atomic<int64_t> entry_bytes{0}, most_entry_bytes{0};
    std::atomic<int> num_entries{0}, num_entries_made{0};
  };

  explicit FakeDenoiser(std::shared_ptr<Control> control, int64_t capacity_tokens = 1 << 20)
      : control_(std::move(control)), capacity_(capacity_tokens), free_(capacity_tokens) {
    info_.family = "fake";
    info_.name = "fake";
    info_.fingerprint = "fake";
    info_.device = "cpu";
    info_.dtype = "float32";
    info_.num_layers = 4;
    info_.hidden_size = 8;
    info_.num_heads = info_.num_kv_heads = 1;
    info_.head_size = 8;
    info_.vocab_size = info_.num_logits = 258;
    info_.max_length = kMaxLength;
    info_.mask_token = kMask;
    info_.end_tokens = {kEnd};
    info_.blocks_go_alone = control_->block_rows > 0;
    info_.attention_block = control_->attention_block;
  }

  const ModelInfo& info() const override { return info_; }
  int64_t capacity_tokens() const override { return capacity_; }
  int64_t free_tokens() const override { return free_; }

  std::optional<SlabId> open_slab(int num_tokens) override {
    if (num_tokens > free_) return std::nullopt;
    slabs_.emplace(next_id_, std::vector<TokenId>(static_cast<size_t>(num_tokens), -1));
    free_ -= num_tokens;
    control_->num_open_slabs = static_cast<int>(slabs_.size());
    return next_id_++;
  }

  void close_slab(SlabId slab) override {
    free_ += static_cast<int64_t>(slabs_.at(slab).size());
    slabs_.erase(slab);
    loaded_depth_.erase(slab);
    control_->num_open_slabs = static_cast<int>(slabs_.size());
  }

  using Denoiser::run;
  std::vector<RowResult> run(const Forward& forward,
                             const std::function<void()>& meanwhile) override {
    if (meanwhile) meanwhile();
    std::this_thread::sleep_for(std::chrono::milliseconds(control_->forward_ms.load()));
    ++control_->num_forwards;
    if (control_->device_failed) throw Error(ErrorCode::kDeviceFailed, "told to be broken");
    fail_if_told(control_->fail_forwards);
    int num_rows = 0, num_blocks = 0;
    for (const RowGroup& group : forward.groups) {
      num_rows += group.num_rows();
      num_blocks += group.num_rows() <= control_->block_rows ? 1 : 0;
      std::vector<TokenId>& canvas = slabs_.at(group.slab);
      if (group.enter_from != kNoId && !entries_.contains(group.enter_from)) {
        throw std::runtime_error("an entry that is gone");
      }
      for (size_t i = 0; i < group.tokens.size(); ++i) {
        canvas.at(static_cast<size_t>(group.row_at(static_cast<int>(i)))) = group.tokens[i];
        if (group.tokens[i] == control_->poison) throw std::runtime_error("a poisoned canvas");
      }
    }
    const bool mixed = num_blocks > 0 && num_blocks < static_cast<int>(forward.groups.size());
    control_->num_mixed += mixed ? 1 : 0;
    raise_to(control_->max_rows_seen, num_rows);
    raise_to(control_->max_canvases_seen, static_cast<int>(forward.groups.size()));
    std::vector<RowResult> results;
    for (const LogitRow& row : forward.logit_rows) results.push_back(predict(forward, row));
    return results;
  }

  int64_t entry_bytes(const EntrySpec& spec) const override {
    const auto boundaries = static_cast<int64_t>(spec.boundaries.size());
    return spec.prefix_len * (spec.max_depth + boundaries * control_->boundary_bytes);
  }
  EntryId create_entry(const EntrySpec& spec) override {
    fail_if_told(control_->fail_creates);
    entries_[next_id_] = {spec, {}};
    ++control_->num_entries_made;
    count_entries();
    return next_id_++;
  }
  void fill_entry(EntryId entry, SlabId from) override {
    fail_if_told(control_->fail_fills);
    Entry& to = entries_.at(entry);
    const std::vector<TokenId>& canvas = slabs_.at(from);
    to.tokens.assign(canvas.begin(), canvas.begin() + to.spec.prefix_len);
  }
  void load_entry(EntryId entry, SlabId to, int depth) override {
    fail_if_told(control_->fail_loads);
    const Entry& from = entries_.at(entry);
    if (depth > from.spec.max_depth) throw std::runtime_error("deeper than the entry");
    std::copy(from.tokens.begin(), from.tokens.end(), slabs_.at(to).begin());
    loaded_depth_[to] = depth;
  }
  void destroy_entry(EntryId entry) override {
    entries_.erase(entries_.find(entry));
    count_entries();
  }

  void check_integrity() const override {
    int64_t used = 0;
    for (const auto& [id, canvas] : slabs_) used += static_cast<int64_t>(canvas.size());
    if (used + free_ != capacity_) throw Error(ErrorCode::kInternal, "slab accounts do not add up");
  }

 private:
  struct Entry {
    EntrySpec spec;
    std::vector<TokenId> tokens;
  };

  void count_entries() {
    int64_t bytes = 0;
    for (const auto& [id, entry] : entries_) bytes += entry_bytes(entry.spec);
    control_->entry_bytes = bytes;
    if (bytes > control_->most_entry_bytes) control_->most_entry_bytes = bytes;
    control_->num_entries = static_cast<int>(entries_.size());
  }

  static void fail_if_told(std::atomic<int>& times) {
    if (times <= 0) return;
    --times;
    throw std::runtime_error("told to fail");
  }

  static void raise_to(std::atomic<int>& high, int value) {
    if (value > high) high = value;
  }

  static TokenId first_allowed(const LogitRow& row) {
    for (const TokenId token : row.sampling->allowed_tokens) {
      const auto is_in = [&](auto list) { return std::ranges::find(list, token) != list.end(); };
      if (!is_in(row.never) && !is_in(row.never_here)) return token;
    }
    return kNoToken;
  }

  RowResult predict(const Forward& forward, const LogitRow& row) const {
    const SlabId slab = forward.groups.at(static_cast<size_t>(row.group)).slab;
    uint64_t hash = 1469598103934665603ull;
    const auto add = [&](uint64_t x) { hash = (hash ^ x) * 1099511628211ull; };
    for (TokenId token : slabs_.at(slab)) add(static_cast<uint64_t>(token + 2));
    add(static_cast<uint64_t>(row.row));
    const auto loaded = loaded_depth_.find(slab);
    if (loaded != loaded_depth_.end()) {
      int num_rows = 0;
      for (const RowGroup& group : forward.groups) {
        num_rows += group.slab == slab ? group.num_rows() : 0;
      }
      if (loaded->second > control_->safe_depth || num_rows <= control_->clash_rows) add(99);
    }
    if (row.sampling->temperature > 0) add(static_cast<uint64_t>(row.uniform * 1e15));
    hash ^= hash >> 29;
    RowResult result;
    const int end_one_in = control_->end_one_in;
    const bool ends = end_one_in > 0 && row.never.empty() && row.never_here.empty() &&
                      (hash >> 8) % static_cast<uint64_t>(end_one_in) == 0;
    result.token = ends ? kEnd : static_cast<TokenId>('a' + hash % 26);
    if (!row.sampling->allowed_tokens.empty()) result.token = first_allowed(row);
    if (row.sampling->forced != kNoToken) result.token = row.sampling->forced;
    result.probability = result.confidence =
        (0.2f + 0.79f * static_cast<float>((hash >> 16) % 1000) / 1000.0f) *
        (control_->is_unsure ? 0.5f : 1.0f);
    for (int i = 0; i < row.sampling->num_top_logprobs; ++i) {
      result.top.push_back({static_cast<TokenId>('a' + (hash + static_cast<uint64_t>(i)) % 26),
                            -0.1f - static_cast<float>(i)});
    }
    return result;
  }

  std::shared_ptr<Control> control_;
  ModelInfo info_;
  int64_t capacity_;
  int64_t free_;
  std::map<SlabId, std::vector<TokenId>> slabs_;
  std::map<SlabId, int> loaded_depth_;
  std::map<EntryId, Entry> entries_;
  int64_t next_id_ = 0;
};

}  // namespace bicached
