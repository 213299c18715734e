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

bool at_the_same_positions(const std::vector<Commit>& some, const std::vector<Commit>& others) {
  return std::ranges::is_permutation(some, others, {}, &Commit::position, &Commit::position);
}

}  // namespace

Shadow::Shadow(const GenerateRequest& request, const ModelInfo& model, Reuse plan, Lease slab,
               PrefixStates states, Course course)
    : request_(without_noise(request)),
      decoder_(request_, model, plan),
      slab_(std::move(slab)),
      states_(states),
      request_draws_(request.sampling.temperature > 0),
      follows_(request_draws_ || course == Course::kOfRequest),
      of_request_(static_cast<size_t>(request.longest_canvas())),
      own_(of_request_) {}

void Shadow::advance(std::span<const RowResult> results, std::span<const RowResult> of_request,
                     const std::vector<Commit>& commits) {
  if (!is_running()) return;
  std::vector<Commit> decided = decoder_.decide(results);
  // An algorithm may open more positions to the one than to the other.
  is_together_ = follows_ || (is_together_ && results.size() == of_request.size());
  if (is_together_) {
    // Of one that follows nothing shows later: what it is unsure of is a difference, too.
    compare_rows(commits, results, follows_);
    compare_rows(decided, of_request, follows_ && !request_draws_);
  }
  for (const Commit& commit : commits) {
    at(of_request_, commit.position) = {commit.token, commit.probability};
  }
  is_together_ = follows_ || (is_together_ && at_the_same_positions(commits, decided));
  if (follows_) decided = commits;
  for (Commit& commit : decided) {
    const Choice& other = at(of_request_, commit.position);
    // Where another token is about as good, the two need not part.
    const bool is_close = std::min(commit.probability, other.probability) <= kMajority;
    if (other.token != kNoToken && is_close) commit.token = other.token;
    at(own_, commit.position) = {commit.token, commit.probability};
  }
  if (!is_together_) {
    compare_choices(commits);
    compare_choices(decided);
    open_.clear();
    for (size_t i = 0; i < results.size(); ++i) {
      open_.push_back({decoder_.open_positions()[i], {results[i].token, results[i].probability}});
    }
  }
  decoder_.follow(std::move(decided));
  // Who is unsure of a whole block is unsure of the next ones, too.
  const bool says_nothing = num_checks_ == 0 && decoder_.stats().num_blocks > 1;
  if (!agrees_ || says_nothing || decoder_.finished()) slab_.reset();
}

void Shadow::conclude() {
  if (!is_running() || is_together_) return;
  for (const auto& [position, choice] : open_) {
    if (at(own_, position).token == kNoToken) compare(choice, at(of_request_, position));
  }
}

/// What one decided, with what the other would put there: both see the same canvas, so that results
/// stand in the same order.
void Shadow::compare_rows(const std::vector<Commit>& commits, std::span<const RowResult> others,
                          bool counts_anyway) {
  const std::vector<int>& open = decoder_.open_positions();
  for (const Commit& commit : commits) {
    const auto row = std::ranges::lower_bound(open, commit.position);
    if (row == open.end() || *row != commit.position) continue;
    const RowResult& other = others[static_cast<size_t>(row - open.begin())];
    compare({commit.token, commit.probability},
            {other.token, counts_anyway ? 1 : other.probability});
  }
}

void Shadow::compare_choices(const std::vector<Commit>& commits) {
  for (const Commit& commit : commits) {
    compare(at(own_, commit.position), at(of_request_, commit.position));
  }
}

void Shadow::compare(const Choice& one, const Choice& other) {
  if (one.probability <= kMajority || other.probability <= kMajority) return;
  ++num_checks_;
  agrees_ = agrees_ && one.token == other.token;
}

}  // namespace bicached
