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

bool are_the_same(const std::vector<Commit>& some, const std::vector<Commit>& others) {
  const auto what = [](const Commit& commit) { return std::pair(commit.position, commit.token); };
  return std::ranges::is_permutation(some, others, {}, what, what);
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
  if (follows_) {
    decided = commits;
  } else {
    is_together_ = is_together_ && are_the_same(commits, decided);
    for (const Commit& commit : decided) {
      at(own_, commit.position) = {commit.token, commit.probability};
    }
    compare_decided(commits);
    compare_decided(decided);
  }
  if (!is_together_) {
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
    Choice& own = at(own_, position);
    if (own.token != kNoToken) continue;
    compare_sure(choice, at(of_request_, position));
    own = choice;
  }
  for (size_t i = 0; i < own_.size(); ++i) {
    lags_ = lags_ || (of_request_[i].token != kNoToken && own_[i].token == kNoToken);
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
    compare_sure({commit.token, commit.probability},
                 {other.token, counts_anyway ? 1 : other.probability});
  }
}

/// Where both have decided.
void Shadow::compare_decided(const std::vector<Commit>& commits) {
  for (const Commit& commit : commits) {
    const Choice &own = at(own_, commit.position), &other = at(of_request_, commit.position);
    if (own.token == kNoToken || other.token == kNoToken) continue;
    ++num_checks_;
    agrees_ = agrees_ && own.token == other.token;
  }
}

/// Where one has not decided yet, and may be unsure.
void Shadow::compare_sure(const Choice& one, const Choice& other) {
  if (one.probability <= kMajority || other.probability <= kMajority) return;
  ++num_checks_;
  agrees_ = agrees_ && one.token == other.token;
}

}  // namespace bicached
