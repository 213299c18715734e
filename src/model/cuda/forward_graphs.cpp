#include "model/cuda/forward_graphs.h"

#include <c10/core/CachingDeviceAllocator.h>

#include <bit>

#include "base/log.h"
#include "bicached/error.h"
#include "model/forward_plan.h"

namespace bicached {
namespace {

/// Blocks of the card's memory that libtorch has given out so far.
int64_t num_allocations(c10::Device card) {
  const auto stats = c10::getDeviceAllocator(card.type())->getDeviceStats(card.index());
  return stats.allocation[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)]
      .allocated;
}

/// What a graph was given while it was captured would be others' when it runs.
void* capture(const CudaStream& stream, const std::function<void()>& work) {
  const int64_t before = num_allocations(stream.card());
  void* graph = CudaRuntime::get().capture(stream.handle(), work);
  if (num_allocations(stream.card()) == before) return graph;
  CudaRuntime::get().destroy_graph(graph);
  throw Error(ErrorCode::kInternal, "an operation of the forward allocates memory");
}

}  // namespace

void ForwardGraphs::run(const PaddedSize& size, const std::function<void()>& work) {
  Graph& graph = graphs_.touch({size.num_rows, size.num_tiles});
  const CudaRuntime& cuda = CudaRuntime::get();
  if (graph.was_run && !graph.executable && works_) {
    try {
      graph.executable = std::shared_ptr<void>(
          capture(stream_, work), [&cuda](void* executable) { cuda.destroy_graph(executable); });
      ++num_captured_;
    } catch (const std::exception& error) {
      works_ = false;
      log_warn(std::string("forwards run without CUDA graphs, and slower: ") + error.what());
    }
  }
  graph.was_run = true;
  if (graph.executable) {
    cuda.launch_graph(graph.executable.get(), stream_.handle());
  } else {
    work();
  }
}

PaddedSize padded_size(int64_t num_rows, int64_t num_tiles) {
  const auto tiles = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(num_tiles)));
  return {filled_size(num_rows, 32), tiles};
}

}  // namespace bicached
