#include "decode/shadow.h"

namespace bicached {
namespace {

/// A token of more than this is the most probable one, whatever was drawn.
constexpr float kMajority = 0.5f;

GenerateRequest without_noise(GenerateRequest request) {
  request.sampling.temperature = 0;
  request.sampling.num_top_logprobs = -1;
  request.deadline.reset();
  return request;
}

}  // namespace

Shadow::Shadow(const GenerateRequest& request, const ModelInfo& model, Reuse plan, Lease slab,
               PrefixStates states)
    : request_(without_noise(request)),
      decoder_(request_, model, plan),
      slab_(std::move(slab)),
      states_(states),
      request_draws_(request.sampling.temperature > 0) {}

void Shadow::follow(std::span<const RowResult> results, std::span<const RowResult> of_request,
                    const std::vector<Commit>& commits) {
  compare(results, of_request, commits);
  decoder_.follow(commits);
}

void Shadow::compare(std::span<const RowResult> results, std::span<const RowResult> of_request,
                     const std::vector<Commit>& commits) {
  // Both canvases have the same masked positions, so that results stand in the same order.
  std::vector<int> row_of(static_cast<size_t>(decoder_.block_end() - decoder_.block_begin()));
  int num_masked = 0;
  for (int position = decoder_.block_begin(); position < decoder_.block_end(); ++position) {
    if (!decoder_.canvas().is_masked(position)) continue;
    row_of[static_cast<size_t>(position - decoder_.block_begin())] = num_masked++;
  }
  const auto check = [&](const Commit& commit, std::span<const RowResult> others, bool drawn) {
    const int row = row_of[static_cast<size_t>(commit.position - decoder_.block_begin())];
    const RowResult& other = others[static_cast<size_t>(row)];
    if (commit.probability <= kMajority || (drawn && other.probability <= kMajority)) return;
    ++num_checks_;
    agrees_ = agrees_ && commit.token == other.token;
  };
  for (const Commit& commit : commits) check(commit, results, false);
  for (const Commit& commit : decoder_.decide(results)) check(commit, of_request, request_draws_);
}

}  // namespace bicached
