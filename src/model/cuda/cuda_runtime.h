#pragma once

#include <c10/core/Stream.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace bicached {

/// A launch's blocks.
struct CudaGrid {
  int64_t x = 1, y = 1, z = 1;
};

/// What this program uses of CUDA beside libtorch: the driver, and the compiler NVRTC that comes
/// with libtorch. Both are found at run time, so that neither building nor running needs a CUDA
/// toolkit. A `card` is counted as libtorch counts: 1 is cuda:1. Kernels and streams are made in
/// the context of the thread's current card, which the caller sets (c10::DeviceGuard); libtorch
/// makes the context with its first tensor there.
class CudaRuntime {
 public:
  /// Throws kInternal naming the library or function that is missing.
  static const CudaRuntime& get();

  std::string name(int card) const;        // "NVIDIA H200"
  int compute_capability(int card) const;  // 90 for 9.0
  /// Of cards that multiply float8.
  static constexpr int kFloat8Capability = 89;
  int num_multiprocessors(int card) const;
  int64_t memory_bytes(int card) const;

  /// CUDA C++ for `card`, the current one. Throws kInternal with the compiler's messages.
  void* compile(const std::string& source, const std::vector<std::string>& options, int card) const;
  void* kernel(void* module, const char* name) const;
  void unload(void* module) const noexcept;
  void launch(void* kernel, void* stream, CudaGrid grid, int block, void** arguments) const;

  /// Whether an error before has made the stream's context unusable; waits for what runs on it.
  bool is_broken(void* stream) const;

  void* create_stream() const;
  void destroy_stream(void* stream) const noexcept;

  /// What `work` puts on the stream, to be launched again and again. Nothing runs.
  void* capture(void* stream, const std::function<void()>& work) const;
  void launch_graph(void* graph, void* stream) const;
  void destroy_graph(void* graph) const noexcept;

 private:
  struct Functions;
  CudaRuntime();
  void check(int result, const char* what) const;
  int device_of(int card) const;
  int attribute(int card, int which) const;

  Functions* functions_;
};

/// The stream of the engine's thread, on the model's card. Libtorch's operations have to go to it,
/// too: the default stream can't be captured. A c10::StreamGuard over `for_libtorch` makes stream
/// and card the calling thread's current ones, which launches of our own kernels need as well.
class CudaStream {
 public:
  explicit CudaStream(c10::Device card);
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  void* handle() const { return handle_; }
  c10::Device card() const { return card_; }
  c10::Stream for_libtorch() const;
  bool is_broken() const { return CudaRuntime::get().is_broken(handle_); }

 private:
  const c10::Device card_;
  void* handle_;
};

}  // namespace bicached
