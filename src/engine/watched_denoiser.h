#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "bicached/denoiser.h"

namespace bicached {

/// A device as the engine sees it: passes every call on, and knows whether the device still works.
/// Engine thread only.
///
/// **Giving back can't fail.** A slab or an entry whose closing throws stays on the device, is
/// remembered and tried again by `look_after`.
///
/// **Results are numbers.** A forward whose results hold a NaN has failed.
///
/// **A device in doubt is tried.** Some failures in a row may be the fault of what was asked, so a
/// forward of one block of masks then tells. As long as such checks fail the device is not ready,
/// and after `kMostFailedChecks` of them it is lost, as after a kDeviceFailed.
class WatchedDenoiser final : public Denoiser {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr int kFailuresToDoubt = 3;
  static constexpr int kMostFailedChecks = 10;

  WatchedDenoiser(std::unique_ptr<Denoiser> device, std::chrono::milliseconds check_interval)
      : device_(std::move(device)), check_interval_(check_interval) {}

  /// It can't be used any more; nothing else is to be asked of it than to take things back.
  bool is_lost() const { return is_lost_; }
  const std::string& last_error() const { return last_error_; }
  /// The last check failed.
  bool is_ready() const { return num_failed_checks_ == 0 && !is_lost_; }
  bool is_in_doubt() const {
    return num_failures_ >= kFailuresToDoubt || num_failed_checks_ > 0 || !unreturned_.empty();
  }
  Clock::time_point next_check() const { return next_check_; }
  /// Checks a device in doubt, if it is time to.
  void look_after(Clock::time_point now);

  // Denoiser.
  const ModelInfo& info() const override { return device_->info(); }
  void begin_on_thread() override;
  std::optional<SlabId> open_slab(int num_tokens) override;
  void close_slab(SlabId slab) override;  // throws nothing
  int64_t capacity_tokens() const override { return device_->capacity_tokens(); }
  int64_t free_tokens() const override { return device_->free_tokens(); }
  using Denoiser::run;
  std::vector<RowResult> run(const Forward& forward,
                             const std::function<void()>& meanwhile) override;
  int64_t entry_bytes(const EntrySpec& spec) const override { return device_->entry_bytes(spec); }
  EntryId create_entry(const EntrySpec& spec) override;
  void fill_entry(EntryId entry, SlabId from) override;
  void load_entry(EntryId entry, SlabId to, int depth) override;
  void destroy_entry(EntryId entry) override;  // throws nothing
  void rest() override;
  void check_integrity() const override { device_->check_integrity(); }

  /// Held by whoever opened or created them.
  int64_t num_slabs() const { return num_slabs_; }
  int64_t num_entries() const { return num_entries_; }

 private:
  struct Unreturned {
    bool is_slab;
    int64_t id;
  };

  /// Passes a call on and notes how it ended.
  template <class Call>
  auto watch(Call&& call);
  void note_failure(const std::exception& error) noexcept;
  void make_room_to_remember();
  void give_back(Unreturned held);
  bool try_to_give_back(Unreturned held);
  bool works();

  const std::unique_ptr<Denoiser> device_;
  const std::chrono::milliseconds check_interval_;
  std::vector<Unreturned> unreturned_;
  int64_t num_slabs_ = 0, num_entries_ = 0;
  int num_failures_ = 0;  // calls that failed since a forward worked
  int num_failed_checks_ = 0;
  bool is_lost_ = false;
  std::string last_error_;
  Clock::time_point next_check_{};
};

}  // namespace bicached
