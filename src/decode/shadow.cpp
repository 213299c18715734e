#include "decode/shadow.h"

#include <algorithm>

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
  if (!is_running()) return;
  compare(results, of_request, commits);
  decoder_.follow(commits);
  // Who is unsure of a whole block is unsure of the next ones, too.
  const bool says_nothing = num_checks_ == 0 && decoder_.stats().num_blocks > 1;
  if (!agrees_ || says_nothing) slab_.reset();
}

void Shadow::compare(std::span<const RowResult> results, std::span<const RowResult> of_request,
                     const std::vector<Commit>& commits) {
  // Both canvases have the same open positions, so that results stand in the same order.
  const std::vector<int>& open = decoder_.open_positions();
  const auto check = [&](const Commit& commit, std::span<const RowResult> others, bool drawn) {
    const auto row = std::ranges::lower_bound(open, commit.position) - open.begin();
    const RowResult& other = others[static_cast<size_t>(row)];
    if (commit.probability <= kMajority || (drawn && other.probability <= kMajority)) return;
    ++num_checks_;
    agrees_ = agrees_ && commit.token == other.token;
  };
  for (const Commit& commit : commits) check(commit, results, false);
  for (const Commit& commit : decoder_.decide(results)) check(commit, of_request, request_draws_);
}

}  // namespace bicached
