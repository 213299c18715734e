#pragma once

#include <atomic>
#include <cstddef>

namespace bicached {

/// What requests hold, summed over all connections. Any thread.
struct HeldBytes {
  std::atomic<size_t> heads{0};    // of unfinished heads, if they are long
  std::atomic<size_t> bodies{0};   // of long bodies that arrive or have arrived
  std::atomic<size_t> working{0};  // of long bodies that workers have
  std::atomic<size_t> answers{0};  // of long answers that clients have yet to take
};

/// One connection's part of such a sum, given back with it. One thread at a time.
class Share {
 public:
  explicit Share(std::atomic<size_t>& sum) : sum_(sum) {}
  ~Share() { set(0); }
  Share(const Share&) = delete;
  Share& operator=(const Share&) = delete;

  void set(size_t num_bytes) {
    sum_ += num_bytes - num_bytes_;
    num_bytes_ = num_bytes;
  }
  size_t num_bytes() const { return num_bytes_; }

 private:
  std::atomic<size_t>& sum_;
  size_t num_bytes_ = 0;
};

}  // namespace bicached
