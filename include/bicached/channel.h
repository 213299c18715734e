#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace bicached {

/// A bounded first-in-first-out queue between threads: requests to the engine, updates back to an
/// HTTP worker. The only class of this program that holds a mutex.
///
/// Any thread may call any member. A push never waits (the caller decides what "full" means); a
/// pop waits until an item, the end or a deadline. After `close()` pushes fail and pops still
/// return what is left, then nothing.
template <typename T>
class Channel {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Channel(size_t capacity) : capacity_(capacity) {}
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  /// False when the channel is full or closed; `item` is then untouched.
  bool try_push(T&& item) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (closed_ || items_.size() >= capacity_) return false;
      items_.push_back(std::move(item));
    }
    ready_.notify_one();
    return true;
  }

  /// The next item at once, or nothing.
  std::optional<T> try_pop() {
    std::lock_guard<std::mutex> lock(mutex_);
    return take();
  }

  /// Waits for an item. Nothing: closed and empty.
  std::optional<T> pop() {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_.wait(lock, [this] { return closed_ || !items_.empty(); });
    return take();
  }

  /// As `pop`, until `deadline`. Nothing: the deadline passed, or closed and empty (`is_done`).
  std::optional<T> pop_until(Clock::time_point deadline) {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_.wait_until(lock, deadline, [this] { return closed_ || !items_.empty(); });
    return take();
  }

  void close() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    ready_.notify_all();
  }

  /// Closed and nothing left: no item will ever come.
  bool is_done() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return closed_ && items_.empty();
  }

  size_t num_items() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return items_.size();
  }

 private:
  std::optional<T> take() {
    if (items_.empty()) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    return item;
  }

  const size_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<T> items_;
  bool closed_ = false;
};

}  // namespace bicached
