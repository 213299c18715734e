#include "engine/watched_denoiser.h"

#include <algorithm>
#include <cmath>

#include "base/log.h"
#include "bicached/error.h"

namespace bicached {
namespace {

/// Where no token may be chosen the others mean nothing.
bool is_number(const RowResult& result) {
  if (result.token == kNoToken) return true;
  for (const float value :
       {result.probability, result.confidence, result.margin, result.entropy, result.divergence}) {
    if (std::isnan(value)) return false;
  }
  return std::ranges::none_of(result.top,
                              [](const TokenLogprob& top) { return std::isnan(top.logprob); });
}

void check_results(const Forward& forward, const std::vector<RowResult>& results) {
  if (results.size() != forward.logit_rows.size()) {
    throw Error(ErrorCode::kInternal, "a forward gave " + std::to_string(results.size()) +
                                          " results for " +
                                          std::to_string(forward.logit_rows.size()) + " rows");
  }
  for (size_t i = 0; i < results.size(); ++i) {
    const bool is_guide = i > 0 && forward.logit_rows[i - 1].guidance != 0;
    if (!is_guide && !is_number(results[i])) {
      throw Error(ErrorCode::kInternal, "the model's logits are not finite numbers");
    }
  }
}

}  // namespace

template <class Call>
auto WatchedDenoiser::watch(Call&& call) {
  try {
    return call();
  } catch (const std::exception& error) {
    note_failure(error);
    throw;
  }
}

void WatchedDenoiser::note_failure(const std::exception& error) noexcept {
  const auto* ours = dynamic_cast<const Error*>(&error);
  if (ours && ours->code() == ErrorCode::kDeviceFailed) is_lost_ = true;
  ++num_failures_;
  contain("the device failed, and why could not be kept", [&] { last_error_ = error.what(); });
}

/// So that a call that gives back needs no memory.
void WatchedDenoiser::make_room_to_remember() {
  const size_t all = static_cast<size_t>(num_slabs_ + num_entries_) + unreturned_.size() + 1;
  if (unreturned_.capacity() < all) unreturned_.reserve(2 * all);
}

bool WatchedDenoiser::try_to_give_back(Unreturned held) {
  try {
    if (held.is_slab) {
      device_->close_slab(static_cast<SlabId>(held.id));
    } else {
      device_->destroy_entry(static_cast<EntryId>(held.id));
    }
    return true;
  } catch (const std::exception& error) {
    note_failure(error);
    return false;
  }
}

void WatchedDenoiser::give_back(Unreturned held) {
  if (try_to_give_back(held)) return;
  unreturned_.push_back(held);
  log_failure(held.is_slab ? "a slab could not be given back, and will be tried again"
                           : "an entry could not be given back, and will be tried again",
              last_error_.c_str());
}

/// What was not given back, and a forward of as little as there is.
bool WatchedDenoiser::works() {
  std::erase_if(unreturned_, [this](const Unreturned& held) { return try_to_give_back(held); });
  if (!unreturned_.empty()) return false;
  const int length = std::max(1, info().attention_block);
  try {
    const std::optional<SlabId> slab = open_slab(length);
    if (!slab) return true;  // canvases hold all there is, and their forwards tell
    const SamplingParams plain;
    Forward forward;
    RowGroup& group = forward.groups.emplace_back();
    group.slab = *slab;
    group.end = group.key_end = length;
    group.tokens.assign(static_cast<size_t>(length), info().mask_token);
    LogitRow& row = forward.logit_rows.emplace_back();
    row.sampling = &plain;
    try {
      run(forward, {});
    } catch (const std::exception&) {
      close_slab(*slab);
      return false;
    }
    close_slab(*slab);
    return unreturned_.empty();
  } catch (const std::exception&) {
    return false;
  }
}

void WatchedDenoiser::look_after(Clock::time_point now) {
  if (is_lost_ || !is_in_doubt() || now < next_check_) return;
  next_check_ = now + check_interval_;
  if (works()) {
    if (num_failed_checks_ > 0) log_info("the device works again");
    num_failures_ = num_failed_checks_ = 0;
    return;
  }
  ++num_failed_checks_;
  is_lost_ = is_lost_ || num_failed_checks_ >= kMostFailedChecks;
  log_error("the device failed check " + std::to_string(num_failed_checks_) + " of " +
            std::to_string(kMostFailedChecks) + ": " + last_error_);
}

// --- Calls -------------------------------------------------------------------------------------

void WatchedDenoiser::begin_on_thread() {
  watch([&] { device_->begin_on_thread(); });
}

std::optional<SlabId> WatchedDenoiser::open_slab(int num_tokens) {
  return watch([&] {
    make_room_to_remember();
    const std::optional<SlabId> slab = device_->open_slab(num_tokens);
    num_slabs_ += slab ? 1 : 0;
    return slab;
  });
}

void WatchedDenoiser::close_slab(SlabId slab) {
  --num_slabs_;
  give_back({true, slab});
}

std::vector<RowResult> WatchedDenoiser::run(const Forward& forward,
                                            const std::function<void()>& meanwhile) {
  return watch([&] {
    std::vector<RowResult> results = device_->run(forward, meanwhile);
    check_results(forward, results);
    num_failures_ = 0;
    if (unreturned_.empty()) num_failed_checks_ = 0;
    return results;
  });
}

EntryId WatchedDenoiser::create_entry(const EntrySpec& spec) {
  return watch([&] {
    make_room_to_remember();
    const EntryId entry = device_->create_entry(spec);
    ++num_entries_;
    return entry;
  });
}

void WatchedDenoiser::fill_entry(EntryId entry, SlabId from) {
  watch([&] { device_->fill_entry(entry, from); });
}

void WatchedDenoiser::load_entry(EntryId entry, SlabId to, int depth) {
  watch([&] { device_->load_entry(entry, to, depth); });
}

void WatchedDenoiser::destroy_entry(EntryId entry) {
  --num_entries_;
  give_back({false, entry});
}

void WatchedDenoiser::rest() {
  watch([&] { device_->rest(); });
}

}  // namespace bicached
