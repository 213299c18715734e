#include "model/cuda/forward_graphs.h"

#include <bit>

#include "base/log.h"
#include "bicached/error.h"

namespace bicached {

void ForwardGraphs::run(const Padding& size, const std::function<void()>& work) {
  Graph& graph = graphs_.touch({size.num_rows, size.num_tiles});
  const CudaRuntime& cuda = CudaRuntime::get();
  if (graph.was_run && !graph.executable && works_) {
    try {
      graph.executable =
          std::shared_ptr<void>(cuda.capture(stream_, work),
                                [&cuda](void* executable) { cuda.destroy_graph(executable); });
    } catch (const std::exception& error) {
      works_ = false;
      log_warn(std::string("forwards run without CUDA graphs, and slower: ") + error.what());
    }
  }
  graph.was_run = true;
  if (graph.executable) {
    cuda.launch_graph(graph.executable.get(), stream_);
  } else {
    work();
  }
}

Padding padded_size(int64_t num_rows, int64_t num_tiles) {
  // Steps of an eighth at most, and of 32 rows at least.
  const auto step = std::max<int64_t>(
      32, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(num_rows - 1) | 1) / 4));
  const int64_t rows = (num_rows + step - 1) / step * step;
  const auto tiles = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(num_tiles)));
  return {rows, tiles};
}

}  // namespace bicached
