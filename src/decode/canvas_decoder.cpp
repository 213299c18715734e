#include "decode/canvas_decoder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "bicached/error.h"
#include "decode/noise.h"
#include "decode/unmask/unmaskers.h"

namespace bicached {
namespace {

/// A position that can't be filled now never can: what stands around it stays.
[[noreturn]] void throw_nothing_left(int index) {
  throw Error(ErrorCode::kInvalidRequest,
              "no token may stand at position " + std::to_string(index) +
                  " of the answer: allowed_token_ids, bad_words, min_tokens and ignore_eos leave "
                  "none beside what is decided already");
}

/// The row of these groups, from `first_group` on, that has the logits of a position.
void find_row(LogitRow& row, std::span<const RowGroup> groups, int first_group) {
  row.group = first_group;
  for (const RowGroup& group : groups) {
    if (row.row < group.end) break;
    ++row.group;
  }
}

}  // namespace

CanvasDecoder::CanvasDecoder(const GenerateRequest& request, const ModelInfo& model, Reuse reuse)
    : request_(request),
      model_(model),
      reuse_(reuse),
      unmasker_(make_unmasker(request.decode)),
      canvas_(request, model.mask_token),
      rules_(request, model),
      decided_(static_cast<size_t>(request.gen_length)) {
  first_block_begin_ = block_start(canvas_.generation_begin());
  if (reuse.depth == model.num_layers) settled_end_ = reuse.prefix_len;
  stats_.prompt_tokens = static_cast<int>(request.prompt_ids.size());
  stats_.prefix_len = reuse.prefix_len;
  stats_.depth = reuse.depth;
  stats_.refresh_depth = reuse.refresh_depth;
  for (size_t i = 0; i < request.given.size(); ++i) {
    if (request.given[i] < 0) continue;
    last_given_ = static_cast<int>(i);
    decided_[i] = {canvas_.generation_begin() + last_given_, request.given[i], 0.0f, {}, true};
  }
  enter_block(0);
  prepare_next();
}

void CanvasDecoder::enter_block(int block) {
  block_ = block;
  const int block_length = request_.decode.block_length;
  last_block_ = std::max(last_block_, block);
  block_begin_ = std::max(first_block_begin_ + block * block_length, canvas_.generation_begin());
  block_end_ = block_limit(last_block_);
  at_block_start_ = true;
  revisions_left_ = unmasker_->max_revisions();
  // The request's steps, in proportion to the positions; at least one a block.
  const int64_t steps = request_.decode.steps, length = request_.gen_length;
  const int64_t first = steps * (block_begin_ - canvas_.generation_begin()) / length;
  const int64_t last = steps * (block_end_ - canvas_.generation_begin()) / length;
  progress_ = {0, std::max(1, static_cast<int>(last - first)),
               canvas_.num_masked_in(block_begin_, block_end_)};
  if (model_.attention_block > 0) {
    // Quotas are those of a whole block, also where a part of it is the prompt's end.
    const int64_t wanted = (steps * block_length + length - 1) / length;
    progress_.num_steps = static_cast<int>(std::clamp<int64_t>(wanted, 1, block_length));
    progress_.num_masked_at_start = block_length;
  }
  progress_.schedule = request_.decode.schedule.value_or(model_.decoder.schedule);
}

/// Passes done blocks, and opens one more if it is its time.
void CanvasDecoder::enter_blocks() {
  const int last = last_block_, end = canvas_.generation_end();
  while (block_is_done() && block_limit(block_) < end) enter_block(block_ + 1);
  if (last_block_ > last || block_end_ == end) return;
  const int begin = std::max(block_limit(last_block_ - 1), block_begin_);
  const int length = block_end_ - begin;
  const int num_decided = length - canvas_.num_masked_in(begin, block_end_);
  if (num_decided >= unmasker_->opens_next_at() * length) block_end_ = block_limit(++last_block_);
}

/// The position behind a block.
int CanvasDecoder::block_limit(int block) const {
  return std::min(first_block_begin_ + (block + 1) * request_.decode.block_length,
                  canvas_.generation_end());
}

/// Where the block of a model that attends block by block begins; else the position.
int CanvasDecoder::block_start(int position) const {
  return model_.attention_block > 0 ? position / model_.attention_block * model_.attention_block
                                    : position;
}

/// What of the progress is new in every step.
void CanvasDecoder::update_progress() {
  // Apart from the noise that draws tokens.
  constexpr uint64_t kStream = 0x6a09e667f3bcc908ull;
  const uint64_t step =
      (static_cast<uint64_t>(block_) << 32) + static_cast<uint64_t>(progress_.step);
  noise_.clear();
  open_.clear();
  for (int position = block_begin_; position < block_end_; ++position) {
    const bool is_masked = canvas_.is_masked(position);
    const bool may_be_revised = unmasker_->max_revisions() > 0 && !canvas_.is_given(position);
    if (is_masked || may_be_revised) open_.push_back(position);
    if (!is_masked) continue;
    noise_.push_back(
        counter_uniform(request_.sampling.seed ^ kStream, step, static_cast<uint64_t>(position)));
  }
  progress_.num_masked = static_cast<int>(noise_.size());
  progress_.num_masked_in_first_block = canvas_.num_masked_in(block_begin_, block_limit(block_));
  progress_.noise = noise_;
}

bool CanvasDecoder::block_is_done() const {
  const bool steps_left = progress_.step < progress_.num_steps;
  if (unmasker_->counts_steps() && request_.decode.run_empty_steps && steps_left) return false;
  return canvas_.num_masked_in(block_begin_, block_limit(block_)) == 0 && revisions_left_ == 0;
}

/// Works out the next forward, or that there is none.
void CanvasDecoder::prepare_next() {
  update_finish();
  if (finished()) return;
  enter_blocks();
  if (block_is_done() && !grow()) {
    finish_ = text_ended_ ? FinishReason::kStop : FinishReason::kLength;
    return;
  }
  update_progress();
  if (!request_.decode.run_empty_steps) {
    while (progress_.step < progress_.num_steps && unmasker_->min_choices(progress_) == 0) {
      ++progress_.step;
      update_progress();
    }
  }

  rules_.look_at(canvas_, open_);
  next_ = {};
  next_.refresh = refresh_is_due();
  next_.decides = request_.decode.first_forward != FirstForward::kDiscarded || !at_block_start_ ||
                  reuse_.intra_cache != IntraCache::kDual;
  next_.in_block = model_.attention_block > 0 ? !at_block_start_
                   : reuse_.is_adaptive()     ? !next_.refresh
                                              : !runs_full_suffix();
  next_.block = block_;
  PlanState state = plan_state();
  next_.groups = plan_rows(state);
  if (is_guided(request_)) {
    // No other request has a prompt of masks.
    state.reuse.prefix_len = state.reuse.depth = state.reuse.refresh_depth = 0;
    if (stats_.num_forwards == 0) state.settled_end = 0;
    next_.guide = plan_rows(state);
  }
  for (const auto* groups : {&next_.groups, &next_.guide}) {
    for (const RowGroup& group : *groups) next_.num_rows += group.num_rows();
    next_.row_layers += row_layers(*groups, model_.num_layers);
  }
}

/// Goes on behind a text without an end, if the request lets it: the canvas is then a new one that
/// begins with what was decided. False: it stays as long as it is.
bool CanvasDecoder::grow() {
  const int length = canvas_.generation_end() - canvas_.generation_begin();
  const int block_length = request_.decode.block_length;
  // Blocks that attend by themselves stay whole.
  const int step =
      model_.attention_block > 0 ? block_length : std::min(block_length, request_.gen_length);
  const int more = std::min(step, request_.longest_generation() - length);
  if (text_ended_ || more <= 0) return false;
  const int block = (canvas_.generation_end() - first_block_begin_) / block_length;
  canvas_.extend(more);
  decided_.resize(static_cast<size_t>(length + more));
  is_new_ = true;
  enter_block(block);
  return true;
}

PlanState CanvasDecoder::plan_state() const {
  PlanState state;
  state.length = canvas_.length();
  state.prompt_len = canvas_.generation_begin();
  state.num_layers = model_.num_layers;
  state.block_begin = block_begin_;
  state.block_end = block_end_;
  state.at_block_start = at_block_start_;
  state.at_first_forward = is_new_;
  state.refresh_due = next_.refresh;
  const bool first_is_open = !open_.empty() && open_.front() == block_begin_;
  state.rows_before_block = first_is_open ? model_.logits_shift : 0;
  state.attention_block = model_.attention_block;
  state.settled_end = settled_end_;
  state.reuse = reuse_;
  return state;
}

/// As Fast-dLLM's loop for Dream: the rows of a block alone have no logits for its first position.
bool CanvasDecoder::decides_first_position() const {
  return request_.decode.first_forward == FirstForward::kFirstPosition && at_block_start_ &&
         (reuse_.intra_cache == IntraCache::kPrefix || reuse_.intra_cache == IntraCache::kDual);
}

/// Whether a prefix or dual cache lets all rows behind the prefix run now.
bool CanvasDecoder::runs_full_suffix() const {
  return at_block_start_ || reuse_.intra_cache == IntraCache::kNone || reuse_.is_adaptive();
}

bool CanvasDecoder::refresh_is_due() const {
  // Where blocks attend only backwards nothing grows old; the first forward counts as one.
  if (model_.attention_block > 0) return stats_.num_forwards == 0 && reuse_.prefix_len > 0;
  const bool refreshes = reuse_.prefix_len > 0 || reuse_.is_adaptive();
  if (!refreshes || last_refresh_step_ == denoise_step_) return false;
  if (request_.cache.refresh_by_step_modulo) return denoise_step_ % reuse_.refresh_interval == 0;
  if (is_new_) return true;
  return runs_full_suffix() && (forwards_since_refresh_ >= reuse_.refresh_interval ||
                                text_commits_ - text_commits_at_refresh_ >= reuse_.refresh_commits);
}

int CanvasDecoder::num_logit_rows() const {
  return next_.decides ? static_cast<int>(open_.size()) * (is_guided(request_) ? 2 : 1) : 0;
}

LogitRow CanvasDecoder::logit_row(int position) const {
  LogitRow row;
  row.row = std::max(0, position - model_.logits_shift);
  row.sampling = &request_.sampling;
  rules_.apply(position, row);
  if (!canvas_.is_masked(position)) row.current = canvas_.token(position);
  row.uniform = counter_uniform(request_.sampling.seed, static_cast<uint64_t>(denoise_step_),
                                static_cast<uint64_t>(position));
  return row;
}

/// The rows of the canvas without prompt and suffix.
void CanvasDecoder::append_guide(Forward& forward, SlabId slab) const {
  for (RowGroup group : next_.guide) {
    group.slab = slab;
    for (int position = group.begin; position < group.end; ++position) {
      const bool is_given = canvas_.is_given(position);
      group.tokens.push_back(is_given ? model_.mask_token : canvas_.token(position));
    }
    forward.groups.push_back(std::move(group));
  }
}

void CanvasDecoder::append_to(Forward& forward, CanvasSlabs slabs,
                              const PrefixStates& prefix) const {
  const int first_group = static_cast<int>(forward.groups.size());
  for (RowGroup group : next_.groups) {
    group.slab = slabs.canvas;
    if (group.enter_layer == 0) {
      group.tokens.assign(canvas_.tokens().begin() + group.begin,
                          canvas_.tokens().begin() + group.end);
    } else {
      const bool own = !is_new_ && group.enter_layer == reuse_.refresh_depth;
      group.enter_from = own && prefix.own != kNoId ? prefix.own : prefix.shared;
    }
    const bool is_kept = reuse_.is_adaptive() || group.begin < reuse_.prefix_len;
    if (is_new_ && is_kept) group.capture_to = prefix.own;
    forward.groups.push_back(std::move(group));
  }
  const int first_guide = static_cast<int>(forward.groups.size());
  append_guide(forward, slabs.guide);
  if (!next_.decides) return;
  static const SamplingParams kPlain;
  for (const int position : open_) {
    LogitRow row = logit_row(position);
    find_row(row, next_.groups, first_group);
    if (unmasker_->wants_divergence()) row.history = slabs.canvas;
    if (is_guided(request_)) row.guidance = request_.decode.cfg_scale + 1;
    forward.logit_rows.push_back(row);
    if (!is_guided(request_)) continue;
    LogitRow guide;
    guide.row = row.row;
    guide.sampling = &kPlain;
    find_row(guide, next_.guide, first_guide);
    forward.logit_rows.push_back(guide);
  }
}

std::vector<Commit> CanvasDecoder::decide(std::span<const RowResult> results) const {
  if (!next_.decides) return {};
  const size_t stride = is_guided(request_) ? 2 : 1;  // a guide's result stands behind each
  std::vector<Candidate> masked, decided;
  std::vector<Commit> of_masked, of_decided;  // what deciding them would be
  for (size_t i = 0; i < open_.size(); ++i) {
    const int position = open_[i];
    const RowResult& r = results[i * stride];
    const bool is_masked = canvas_.is_masked(position);
    if (r.token == kNoToken) {
      if (is_masked) throw_nothing_left(position - canvas_.generation_begin());
      continue;
    }
    (is_masked ? masked : decided)
        .push_back({position, r.token, r.confidence, r.margin, r.entropy, r.divergence,
                    is_masked ? -1 : canvas_.token(position)});
    (is_masked ? of_masked : of_decided).push_back({position, r.token, r.probability, r.top});
  }
  std::vector<Commit> commits;
  if (!masked.empty()) {
    for (const int i : choose(masked)) commits.push_back(of_masked[static_cast<size_t>(i)]);
  }
  if (!decided.empty()) {
    for (const int i : unmasker_->revise(decided)) {
      commits.push_back(of_decided[static_cast<size_t>(i)]);
    }
  }
  return rules_.without_bad_words(std::move(commits), canvas_);
}

/// Indices of the masked positions to decide; at least one unless the step's quota is 0.
std::vector<int> CanvasDecoder::choose(std::span<const Candidate> masked) const {
  if (decides_first_position()) return {0};
  std::vector<int> chosen = unmasker_->choose(masked, progress_);
  const bool may_be_empty = request_.decode.run_empty_steps && unmasker_->counts_steps() &&
                            progress_.step < progress_.num_steps;
  if (chosen.empty() && !may_be_empty) chosen.push_back(most_probable(masked));
  return chosen;
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
  settled_end_ = block_start(block_begin_);
  if (at_block_start_) ++stats_.num_blocks;
  at_block_start_ = is_new_ = false;
  if (progress_.num_masked == 0 && revisions_left_ > 0) {
    revisions_left_ = last_commits_.empty() ? 0 : revisions_left_ - 1;
    // A forward that changed nothing has left the block's final K/V.
    if (last_commits_.empty()) settled_end_ = block_end_;
  }
  if (next_.decides) {
    const int text_before = text_commits_;
    for (const Commit& commit : last_commits_) record(commit);
    if (text_commits_ > text_before) ++stats_.num_text_forwards;
    if (unmasker_->opens_next_at() <= 1 && request_.decode.eos_early_stop) fill_behind_end();
    ++progress_.step;
    ++denoise_step_;
  }
  prepare_next();
}

void CanvasDecoder::record(const Commit& commit) {
  if (canvas_.is_masked(commit.position)) {
    canvas_.commit(commit.position, commit.token);
  } else {
    rules_.uncount(canvas_.token(commit.position));
    canvas_.revise(commit.position, commit.token);
  }
  rules_.count(commit.token);
  if (!rules_.is_end(commit.token)) ++text_commits_;
  // A token of probability 0 (a biased draw) would have a log-probability that JSON can't hold.
  constexpr float kLowest = -9999.0f;
  decided_[static_cast<size_t>(commit.position - canvas_.generation_begin())] = {
      commit.position, commit.token,
      commit.probability > 0 ? std::log(commit.probability) : kLowest, commit.top, false};
}

/// What follows the first end token is no text: decided as end tokens it needs no forward, and
/// the positions before it see the end that they are trained to see.
void CanvasDecoder::fill_behind_end() {
  const int begin = canvas_.generation_begin(), end = canvas_.generation_end();
  int first = begin + last_given_ + 1;
  while (first < end && (canvas_.is_masked(first) || !rules_.is_end(canvas_.token(first)))) ++first;
  for (int position = first + 1; position < end; ++position) {
    if (canvas_.is_masked(position)) {
      canvas_.commit(position, canvas_.token(first));
    } else {
      canvas_.revise(position, canvas_.token(first));
    }
  }
}

/// Moves the end of the final text, and ends the request at an end token if it may.
void CanvasDecoder::update_finish() {
  // What may still be revised is not final.
  const int end = revisions_left_ > 0 ? block_begin_ : canvas_.first_masked();
  const int decided = std::min(end - canvas_.generation_begin(), request_.text_limit());
  for (; final_end_ < decided && !text_ended_; ++final_end_) {
    const DecidedToken& token = decided_[static_cast<size_t>(final_end_)];
    gap_ended_ = !token.is_given && (gap_ended_ || rules_.is_end(token.token));
    text_ended_ = gap_ended_ && final_end_ > last_given_;
    if (text_ended_ && request_.wants_end) {
      final_.push_back(token);
      final_.back().is_end = true;
    }
    if (gap_ended_) continue;
    final_.push_back(token);
    if (!token.is_given) ++stats_.completion_tokens;
  }
  if (text_ended_ && request_.decode.eos_early_stop) {
    finish_ = FinishReason::kStop;
  } else if (request_.max_text > 0 && final_end_ >= request_.max_text) {
    finish_ = text_ended_ ? FinishReason::kStop : FinishReason::kLength;
  }
}

std::vector<DecidedToken> CanvasDecoder::take_final_tokens() { return std::exchange(final_, {}); }

}  // namespace bicached
