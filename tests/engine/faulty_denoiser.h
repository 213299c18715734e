#pragma once

#include <array>
#include <atomic>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bicached/denoiser.h"
#include "bicached/error.h"

namespace bicached {

/// What an engine asks of a device, as far as it can fail.
enum class DeviceCall { kBegin, kOpen, kClose, kForward, kCreate, kFill, kLoad, kDestroy };
inline constexpr int kNumDeviceCalls = 8;

enum class FaultKind { kInternal, kOutOfMemory, kDeviceFailed, kBadAlloc, kOther, kNaN };

/// Calls [from, from + count) of one sort fail, counted from 0.
struct Fault {
  static constexpr int kForEver = std::numeric_limits<int>::max();

  DeviceCall call = DeviceCall::kForward;
  FaultKind kind = FaultKind::kInternal;  // kNaN: of a forward only
  int from = 0;
  int count = 1;
  bool after_work = false;  // a forward that has run before it fails

  bool hits(DeviceCall at, int number) const {
    return call == at && number >= from && (count == kForEver || number - from < count);
  }
};

/// A device that fails when it is told to. A call that fails has changed nothing, but for the K/V
/// that a forward may have written.
class FaultyDenoiser final : public Denoiser {
 public:
  struct Control {
    static constexpr size_t kMostFaults = 8;
    std::vector<Fault> faults;                             // not to be changed once the engine runs
    std::array<std::atomic<int>, kMostFaults> num_hits{};  // of these
    std::atomic<bool> is_repaired{false};
    std::array<std::atomic<int>, kNumDeviceCalls> num_calls{}, num_failed{};
  };

  FaultyDenoiser(std::unique_ptr<Denoiser> device, std::shared_ptr<Control> control)
      : device_(std::move(device)), control_(std::move(control)) {}

  const ModelInfo& info() const override { return device_->info(); }
  int64_t capacity_tokens() const override { return device_->capacity_tokens(); }
  int64_t free_tokens() const override { return device_->free_tokens(); }
  int64_t entry_bytes(const EntrySpec& spec) const override { return device_->entry_bytes(spec); }
  void check_integrity() const override { device_->check_integrity(); }

  void begin_on_thread() override {
    fail_if_told(DeviceCall::kBegin);
    device_->begin_on_thread();
  }
  std::optional<SlabId> open_slab(int num_tokens) override {
    fail_if_told(DeviceCall::kOpen);
    return device_->open_slab(num_tokens);
  }
  void close_slab(SlabId slab) override {
    fail_if_told(DeviceCall::kClose);
    device_->close_slab(slab);
  }
  EntryId create_entry(const EntrySpec& spec) override {
    fail_if_told(DeviceCall::kCreate);
    return device_->create_entry(spec);
  }
  void fill_entry(EntryId entry, SlabId from) override {
    fail_if_told(DeviceCall::kFill);
    device_->fill_entry(entry, from);
  }
  void load_entry(EntryId entry, SlabId to, int depth) override {
    fail_if_told(DeviceCall::kLoad);
    device_->load_entry(entry, to, depth);
  }
  void destroy_entry(EntryId entry) override {
    fail_if_told(DeviceCall::kDestroy);
    device_->destroy_entry(entry);
  }

  using Denoiser::run;
  std::vector<RowResult> run(const Forward& forward,
                             const std::function<void()>& meanwhile) override {
    const Fault* fault = next_fault(DeviceCall::kForward);
    if (fault && fault->kind != FaultKind::kNaN && !fault->after_work) fail(*fault);
    std::vector<RowResult> results = device_->run(forward, meanwhile);
    if (fault && fault->kind != FaultKind::kNaN) fail(*fault);
    if (fault) spoil(results, fault->after_work);
    return results;
  }

 private:
  const Fault* next_fault(DeviceCall call) {
    const int number = control_->num_calls[static_cast<size_t>(call)]++;
    if (control_->is_repaired) return nullptr;
    for (size_t i = 0; i < control_->faults.size(); ++i) {
      const Fault& fault = control_->faults[i];
      if (!fault.hits(call, number)) continue;
      ++control_->num_hits.at(i);
      ++control_->num_failed[static_cast<size_t>(call)];
      return &fault;
    }
    return nullptr;
  }

  void fail_if_told(DeviceCall call) {
    if (const Fault* fault = next_fault(call)) fail(*fault);
  }

  [[noreturn]] static void fail(const Fault& fault) {
    switch (fault.kind) {
      case FaultKind::kOutOfMemory: throw Error(ErrorCode::kOutOfMemory, "told: no memory");
      case FaultKind::kDeviceFailed: throw Error(ErrorCode::kDeviceFailed, "told: device gone");
      case FaultKind::kBadAlloc: throw std::bad_alloc();
      case FaultKind::kOther: throw std::runtime_error("told to fail");
      default: throw Error(ErrorCode::kInternal, "told: a defect");
    }
  }

  /// What an overflow in a layer leaves: of all rows, or of one.
  static void spoil(std::vector<RowResult>& results, bool all) {
    constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
    for (RowResult& result : results) {
      result.probability = result.confidence = result.margin = result.entropy = kNaN;
      for (TokenLogprob& top : result.top) top.logprob = kNaN;
      if (!all) return;
    }
  }

  std::unique_ptr<Denoiser> device_;
  std::shared_ptr<Control> control_;
};

}  // namespace bicached
