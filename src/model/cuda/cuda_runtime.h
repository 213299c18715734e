#pragma once

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
/// toolkit. Kernels, streams and graphs need the context that libtorch makes with its first tensor
/// on the card.
class CudaRuntime {
 public:
  /// Throws kInternal naming the library or function that is missing.
  static const CudaRuntime& get();

  int compute_capability() const;  // 90 for 9.0
  int num_multiprocessors() const;

  /// CUDA C++ for the current card. Throws kInternal with the compiler's messages.
  void* compile(const std::string& source, const std::vector<std::string>& options) const;
  void* kernel(void* module, const char* name) const;
  void unload(void* module) const noexcept;
  void launch(void* kernel, void* stream, CudaGrid grid, int block, void** arguments) const;

  /// Whether an error before has made the context unusable; waits for what runs.
  bool is_broken() const;

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
  int attribute(int which) const;

  Functions* functions_;
};

/// The stream of the engine's thread. While one lives, libtorch's operations on the first card go
/// to it too: the default stream can't be captured.
class CudaStream {
 public:
  CudaStream();
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  void* handle() const { return handle_; }

  /// Makes it libtorch's current stream, of the calling thread, as long as it lives.
  class Use {
   public:
    explicit Use(const CudaStream* stream);  // null: changes nothing
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    bool changed_ = false;
    int64_t before_ = 0;
  };

 private:
  void* handle_;
};

}  // namespace bicached
