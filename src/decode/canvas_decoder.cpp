#include "decode/canvas_decoder.h"

#include <algorithm>
#include <cmath>

#include "bicached/error.h"
#include "decode/noise.h"
#include "decode/unmask/unmaskers.h"

namespace bicached {

CanvasDecoder::CanvasDecoder(const GenerateRequest& request, const ModelInfo& model, Reuse reuse)
    : request_(request),
      model_(model),
      reuse_(reuse),
      unmasker_(make_unmasker(request.decode)),
      canvas_(request, model.mask_token),
      decided_(static_cast<size_t>(request.gen_length)) {
  const int block_length = request.decode.block_length;
  num_blocks_ = (request.gen_length + block_length - 1) / block_length;
  stats_.prompt_tokens = static_cast<int>(request.prompt_ids.size());
  stats_.prefix_len = reuse.prefix_len;
  stats_.depth = reuse.depth;
  stats_.refresh_depth = reuse.refresh_depth;
  enter_block(0);
  prepare_next();
}

void CanvasDecoder::enter_block(int block) {
  block_ = block;
  block_begin_ = canvas_.generation_begin() + block * request_.decode.block_length;
  block_end_ = std::min(block_begin_ + request_.decode.block_length, canvas_.generation_end());
  at_block_start_ = true;
  // The request's steps, in proportion to the positions; at least one a block.
  const int64_t steps = request_.decode.steps, length = request_.gen_length;
  const int64_t first = steps * (block_begin_ - canvas_.generation_begin()) / length;
  const int64_t last = steps * (block_end_ - canvas_.generation_begin()) / length;
  progress_ = {0, std::max(1, static_cast<int>(last - first)),
               canvas_.num_masked_in(block_begin_, block_end_)};
}

bool CanvasDecoder::block_is_done() const {
  const bool steps_left = progress_.step < progress_.num_steps;
  if (unmasker_->counts_steps() && request_.decode.run_empty_steps && steps_left) return false;
  return canvas_.num_masked_in(block_begin_, block_end_) == 0;
}

/// Works out the next forward, or that there is none.
void CanvasDecoder::prepare_next() {
  update_finish();
  if (finished()) return;
  while (block_is_done() && block_ + 1 < num_blocks_) enter_block(block_ + 1);
  if (block_is_done()) {
    finish_ = text_ended_ ? FinishReason::kStop : FinishReason::kLength;
    return;
  }
  if (!request_.decode.run_empty_steps) {
    while (progress_.step < progress_.num_steps && unmasker_->min_choices(progress_) == 0) {
      ++progress_.step;
    }
  }

  next_ = {};
  next_.refresh = refresh_is_due();
  next_.decides = request_.decode.use_first_forward || !at_block_start_ ||
                  reuse_.intra_cache != IntraCache::kDual;
  next_.in_block = reuse_.is_adaptive() ? !next_.refresh : !runs_full_suffix();
  next_.block = block_;
  PlanState state;
  state.length = canvas_.length();
  state.prompt_len = canvas_.generation_begin();
  state.num_layers = model_.num_layers;
  state.block_begin = block_begin_;
  state.block_end = block_end_;
  state.at_block_start = at_block_start_;
  state.at_first_forward = !has_run();
  state.refresh_due = next_.refresh;
  state.logits_shift = model_.logits_shift;
  state.reuse = reuse_;
  next_.groups = plan_rows(state);
  for (const RowGroup& group : next_.groups) next_.num_rows += group.num_rows();
  next_.row_layers = row_layers(next_.groups, model_.num_layers);
}

/// Whether a prefix or dual cache lets all rows behind the prefix run now.
bool CanvasDecoder::runs_full_suffix() const {
  return at_block_start_ || reuse_.intra_cache == IntraCache::kNone || reuse_.is_adaptive();
}

bool CanvasDecoder::refresh_is_due() const {
  const bool refreshes = reuse_.prefix_len > 0 || reuse_.is_adaptive();
  if (!refreshes || last_refresh_step_ == denoise_step_) return false;
  if (request_.cache.refresh_by_step_modulo) return denoise_step_ % reuse_.refresh_interval == 0;
  if (!has_run()) return true;
  return runs_full_suffix() && (forwards_since_refresh_ >= reuse_.refresh_interval ||
                                text_commits_ - text_commits_at_refresh_ >= reuse_.refresh_commits);
}

bool CanvasDecoder::is_end_token(TokenId token) const {
  return std::ranges::find(model_.end_tokens, token) != model_.end_tokens.end();
}

int CanvasDecoder::num_logit_rows() const {
  return next_.decides ? canvas_.num_masked_in(block_begin_, block_end_) : 0;
}

void CanvasDecoder::append_to(Forward& forward, SlabId slab, const PrefixStates& prefix) const {
  const int first_group = static_cast<int>(forward.groups.size());
  for (RowGroup group : next_.groups) {
    group.slab = slab;
    if (group.enter_layer == 0) {
      group.tokens.assign(canvas_.tokens().begin() + group.begin,
                          canvas_.tokens().begin() + group.end);
    } else {
      const bool own = has_run() && group.enter_layer == reuse_.refresh_depth;
      group.enter_from = own && prefix.own != kNoId ? prefix.own : prefix.shared;
    }
    const bool is_kept = reuse_.is_adaptive() || group.begin < reuse_.prefix_len;
    if (!has_run() && is_kept) group.capture_to = prefix.own;
    forward.groups.push_back(std::move(group));
  }
  if (!next_.decides) return;
  for (int position = block_begin_; position < block_end_; ++position) {
    if (!canvas_.is_masked(position)) continue;
    LogitRow row;
    row.row = std::max(0, position - model_.logits_shift);
    row.group = first_group;
    while (row.row >= next_.groups[static_cast<size_t>(row.group - first_group)].end) ++row.group;
    row.sampling = &request_.sampling;
    row.suppress_end_tokens = request_.decode.ignore_eos;
    row.uniform = counter_uniform(request_.sampling.seed, static_cast<uint64_t>(denoise_step_),
                                  static_cast<uint64_t>(position));
    forward.logit_rows.push_back(row);
  }
}

std::vector<Commit> CanvasDecoder::decide(std::span<const RowResult> results) const {
  if (!next_.decides) return {};
  std::vector<Candidate> candidates;
  for (int position = block_begin_; position < block_end_; ++position) {
    if (!canvas_.is_masked(position)) continue;
    const RowResult& r = results[candidates.size()];
    candidates.push_back({position, r.token, r.probability, r.margin, r.entropy});
  }
  if (candidates.empty()) return {};
  std::vector<int> chosen = unmasker_->choose(candidates, progress_);
  const bool may_be_empty = request_.decode.run_empty_steps && unmasker_->counts_steps() &&
                            progress_.step < progress_.num_steps;
  if (chosen.empty() && !may_be_empty) chosen.push_back(most_probable(candidates));
  std::vector<Commit> commits;
  for (const int i : chosen) {
    const RowResult& r = results[static_cast<size_t>(i)];
    commits.push_back({candidates[static_cast<size_t>(i)].position, r.token, r.probability, r.top});
  }
  return commits;
}

void CanvasDecoder::follow(std::vector<Commit> commits) {
  last_commits_ = std::move(commits);
  ++stats_.num_forwards;
  stats_.num_refreshes += next_.refresh ? 1 : 0;
  stats_.row_layers += next_.row_layers;
  ++forwards_since_refresh_;
  if (next_.refresh) {
    last_refresh_step_ = denoise_step_;
    forwards_since_refresh_ = 1;
    text_commits_at_refresh_ = text_commits_;
  }
  if (at_block_start_) ++stats_.num_blocks;
  at_block_start_ = false;
  if (next_.decides) {
    const int text_before = text_commits_;
    for (const Commit& commit : last_commits_) record(commit);
    if (text_commits_ > text_before) ++stats_.num_text_forwards;
    ++progress_.step;
    ++denoise_step_;
  }
  prepare_next();
}

void CanvasDecoder::record(const Commit& commit) {
  canvas_.commit(commit.position, commit.token);
  if (!is_end_token(commit.token)) ++text_commits_;
  // A token of probability 0 (a biased draw) would have a log-probability that JSON can't hold.
  constexpr float kLowest = -9999.0f;
  decided_[static_cast<size_t>(commit.position - canvas_.generation_begin())] = {
      commit.position, commit.token,
      commit.probability > 0 ? std::log(commit.probability) : kLowest, commit.top};
}

/// Moves the end of the final text, and ends the request at an end token if it may.
void CanvasDecoder::update_finish() {
  const int decided = canvas_.first_masked() - canvas_.generation_begin();
  while (final_end_ < decided && !text_ended_) {
    const TokenId token = decided_[static_cast<size_t>(final_end_)].token;
    text_ended_ = is_end_token(token);
    if (!text_ended_) ++final_end_;
  }
  stats_.completion_tokens = final_end_;
  if (text_ended_ && request_.decode.eos_early_stop) finish_ = FinishReason::kStop;
}

std::vector<DecidedToken> CanvasDecoder::take_final_tokens() {
  std::vector<DecidedToken> tokens(decided_.begin() + published_end_,
                                   decided_.begin() + final_end_);
  published_end_ = final_end_;
  return tokens;
}

}  // namespace bicached
